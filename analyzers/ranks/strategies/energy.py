"""Ranks by the spectrum: as much of every layer's energy inside its rank as the budget pays for."""

from __future__ import annotations

import numpy as np

from analyzers.ranks.strategies.strategy import Layer, Strategy


def score(layer: Layer, ranks: np.ndarray) -> np.ndarray:
    """Share of the layer's energy that direction r + 1 adds, σ²_{r+1} / Σσ², per trained number, of which it costs 2r + 1.

    Singular values fall and costs rise, so the score falls with r and taking the best steps first maximises
    Σ_layers Σ_{i<=r} σ_i² / ‖W0‖²_F under Σ r² <= budget. Dividing by ‖W0‖²_F counts every layer the same; without it the layers
    of largest norm would take everything.
    """
    assert layer.spectrum is not None  # `needs_spectra` says so
    return layer.spectrum.energy_gains(ranks) / (2 * ranks + 1)


STRATEGY = Strategy(
    name="energy",
    label="By energy",
    summary="Maximises the energy captured inside the ranks, summed over layers as a share of each layer's own.",
    evidence=(
        "Maximises the sum over layers of the captured share of ‖W0‖²_F under the budget. That describes the pretrained weights, "
        "not the task: no public evidence shows a spectrum-based plan beating uniform ranks for LoRA-XS, and in one public study "
        "(a 7B coder model under DP-SGD) ranks by stable rank lost to uniform in every pair, though its scaling alpha/r was not "
        "held constant. Compare it with the uniform plan before you rely on it."
    ),
    score=score,
    needs_spectra=True,
    additive=True,
)
