"""The same rank everywhere: the baseline that every other strategy has to beat."""

from __future__ import annotations

import numpy as np

from analyzers.ranks.strategies.strategy import Layer, Strategy


def score(layer: Layer, ranks: np.ndarray) -> np.ndarray:
    """Lowest rank first. Where some layers must rise by one more to use the budget, they are spread evenly over the depth."""
    return -(ranks + 0.5)


STRATEGY = Strategy(
    name="uniform",
    label="Uniform",
    summary="The same rank in every layer; some have one more where 99 % of the budget cannot be used otherwise.",
    evidence=(
        "Uniform ranks are what the LoRA-XS paper trains (arXiv 2405.17604) and the baseline at equal budget: no published result "
        "shows another allocation beating them for LoRA-XS."
    ),
    score=score,
)
