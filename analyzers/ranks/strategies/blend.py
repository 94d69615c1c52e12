"""Role and gradient together, shrunk toward uniform ranks by how far two halves of the calibration data disagree."""

from __future__ import annotations

import numpy as np

from analyzers.ranks.strategies import role
from analyzers.ranks.strategies.strategy import Layer, Strategy

MOST = 2.0  # a layer's rank aims at uniform's divided or multiplied by this at most


def score(layer: Layer, ranks: np.ndarray) -> np.ndarray:
    """Ranks in proportion to (role's weight · √importance)^agreement, bounded: where the halves do not agree at all, to 1.

    The root: gains grow about as r², so layers whose gain is four times as large aim at twice the rank.
    """
    bold = role.WEIGHTS.get(layer.weight.role, 1.0) * np.sqrt(layer.importance)
    return -(ranks + 0.5) / float(np.clip(bold, 1 / MOST, MOST) ** layer.agreement)


STRATEGY = Strategy(
    name="blend",
    label="Role and gradient",
    summary="Role and gradient together, shrunk toward uniform as far as two halves of the calibration data disagree.",
    evidence=(
        "Combines the direction of arXiv 2405.17604 (output dense layers need more) with the task's own gradient, trusted only as far "
        "as two halves of the calibration data agree; where they do not, the plan is uniform. No published result shows it beating "
        "uniform ranks. Experimental."
    ),
    score=score,
    signal="gradient",
    experimental=True,
)
