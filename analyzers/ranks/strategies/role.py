"""Ranks by what a layer is for: the MLP's down projection ("output dense") gets more than attention."""

from __future__ import annotations

import numpy as np

from analyzers.ranks.strategies.strategy import Layer, Strategy

# Ranks aim at these proportions; a role that is not named weighs 1. The direction is supported by the sources in `evidence`; the
# factor 2 is a choice that no source fixes: in a RoBERTa layer (query, value, attention output, output dense) it leaves attention
# three fifths of the ranks and three sevenths of the trained numbers.
WEIGHTS = {"mlp.down": 2.0}


def score(layer: Layer, ranks: np.ndarray) -> np.ndarray:
    """Ranks rise together in proportion to the role's weight w: the step to r + 1 comes when the common level t has w·t = r + ½."""
    return -(ranks + 0.5) / WEIGHTS.get(layer.weight.role, 1.0)


STRATEGY = Strategy(
    name="role",
    label="By role",
    summary="MLP down projections (output dense) get twice the rank of every other layer.",
    evidence=(
        "The LoRA-XS paper's spectrum ablation found that output dense layers need more of the spectrum and self-attention "
        "tolerates less (arXiv 2405.17604, RoBERTa-large), and L1RA's pruned ranks end largest in the feed-forward and "
        "attention-output projections (arXiv 2509.04884). The factor 2 is a choice, and no published result shows such a plan "
        "beating uniform ranks at the same budget: compare it with the uniform plan before you rely on it."
    ),
    score=score,
)
