"""Ranks by what a layer is for: the MLP's down projection ("output dense") gets more than attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analyzers.ranks.strategies.strategy import Layer, Strategy

# Ranks aim at these proportions; a role that is not named weighs 1. The direction is supported by the sources in `evidence`; the
# factor 2 is a choice that no source fixes: in a RoBERTa layer (query, value, attention output, output dense) it leaves attention
# three fifths of the ranks and three sevenths of the trained numbers.
WEIGHTS = {"mlp.down": 2.0}


def score(layer: Layer, ranks: np.ndarray) -> np.ndarray:
    """Ranks rise together in proportion to the role's weight w: the step to r + 1 comes when the common level t has w·t = r + ½."""
    return -(ranks + 0.5) / WEIGHTS.get(layer.weight.role, 1.0)


def remark(layers: Sequence[Layer]) -> str:
    """Says so where the roles tell no layer from another."""
    with_more = sum(layer.weight.role in WEIGHTS for layer in layers)
    if 0 < with_more < len(layers):
        return ""
    which = "All of these layers are MLP down projections" if with_more else "None of these layers is an MLP down projection"
    return f"{which} (output dense), so by role they all get the same rank: this is the uniform plan."


STRATEGY = Strategy(
    name="role",
    label="By role",
    summary="MLP down projections (output dense), where the plan has any, get twice the rank of the other layers.",
    remark=remark,
    evidence=(
        "The LoRA-XS paper's spectrum ablation found that output dense layers need more of the spectrum and self-attention "
        "tolerates less (arXiv 2405.17604, RoBERTa-large), and L1RA's pruned ranks end largest in the feed-forward and "
        "attention-output projections (arXiv 2509.04884). The factor 2 is a choice, and no published result shows such a plan "
        "beating uniform ranks at the same budget: compare it with the uniform plan before you rely on it."
    ),
    score=score,
)
