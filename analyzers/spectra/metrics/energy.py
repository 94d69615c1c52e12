"""How many directions hold how much of the energy (the sum of the squared singular values)."""

from __future__ import annotations

import math

import numpy as np

from analyzers.spectra.metrics.metric import Metric, Spectrum

SOURCE = "Eckart & Young 1936: the best rank-k approximation keeps the k largest"
ROUNDING = 1e-12  # of the total, so that a sum that equals its target up to rounding counts as reaching it


def rank_for(layer: Spectrum, share: float) -> float:
    """The smallest k whose top k directions hold `share` of the energy; 0 for the zero matrix.

    NaN when only the largest values are known and they hold less.
    """
    if layer.energy == 0:
        return 0.0
    reached = layer.cumulative_energy >= share - ROUNDING
    return float(np.argmax(reached) + 1) if reached.any() else math.nan


def _metric(percent: int) -> Metric:
    return Metric(
        f"Rank for {percent} % of the energy",
        "directions",
        f"The fewest directions that keep {percent} % of the layer's squared Frobenius norm.",
        SOURCE,
        lambda layer: rank_for(layer, percent / 100),
        needs_all=False,
        whole=True,
    )


METRICS = {f"rank_{percent}": _metric(percent) for percent in (50, 90, 95, 99)}
