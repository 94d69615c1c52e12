"""How many directions a matrix really uses: smooth stand-ins for the rank."""

from __future__ import annotations

import numpy as np

from analyzers.spectra.metrics.metric import Metric, Spectrum


def entropy_rank(weights: np.ndarray) -> float:
    """exp of the Shannon entropy of non-negative `weights` scaled to sum 1; 0 when all are 0."""
    total = weights.sum()
    if total == 0:
        return 0.0
    shares = weights[weights > 0] / total
    return float(np.exp(-np.sum(shares * np.log(shares))))


def participation_ratio(layer: Spectrum) -> float:
    """(sum of sigma^2)^2 / sum of sigma^4; 0 for the zero matrix."""
    energies = np.square(layer.scaled)
    fourth = np.sum(np.square(energies))
    return float(energies.sum() ** 2 / fourth) if fourth else 0.0


METRICS = {
    "stable_rank": Metric(
        "Stable rank",
        "directions",
        "The layer's energy in units of its strongest direction: low when one direction dominates.",
        "Rudelson & Vershynin, Sampling from large matrices, J. ACM 2007",
        lambda layer: layer.energy,  # it is measured in units of sigma_1 squared
        needs_all=False,
    ),
    "effective_rank": Metric(
        "Effective rank",
        "directions",
        "The number of equally strong directions with the same entropy as the singular values.",
        "Roy & Vetterli, The effective rank, EUSIPCO 2007",
        lambda layer: entropy_rank(layer.scaled),
    ),
    "effective_rank_energy": Metric(
        "Effective rank of the energy",
        "directions",
        "The same entropy count over the squared singular values, where weak directions hardly weigh.",
        "Roy & Vetterli 2007, applied to the energies",
        lambda layer: entropy_rank(np.square(layer.scaled)),
    ),
    "participation_ratio": Metric(
        "Participation ratio",
        "directions",
        "The number of directions that share the energy, by its second moment.",
        "Gao et al., A theory of multineuronal dimensionality, bioRxiv 2017",
        participation_ratio,
    ),
}
