"""The same rank everywhere: the baseline that every other strategy has to beat."""

from __future__ import annotations

import numpy as np

from analyzers.ranks.strategies.strategy import Layer, Strategy


def score(layer: Layer, ranks: np.ndarray) -> np.ndarray:
    """Lowest rank first. What is left when not every layer can rise by one more is spread evenly over the depth of the model."""
    return -(ranks + 0.5)


STRATEGY = Strategy(
    name="uniform",
    label="Uniform",
    summary="The same rank in every layer; ranks differ by at most one to use up the budget.",
    evidence=(
        "Uniform ranks are what the LoRA-XS paper trains (arXiv 2405.17604) and the baseline at equal budget: no published result "
        "shows another allocation beating them for LoRA-XS."
    ),
    score=score,
)
