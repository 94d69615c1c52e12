"""Follows the mean squared gradient of R; within half and twice uniform."""

from __future__ import annotations

from analyzers.ranks.strategies.strategy import Strategy, measured

STRATEGY = Strategy(
    name="fisher",
    label="By Fisher information",
    summary="Follows the mean squared gradient of R; within half and twice uniform.",
    evidence=(
        "Mean squared gradients, as in FIM-LoRA (arXiv 2605.16800), whose ranks match uniform ones and do not beat "
        "them. Stable between calibration seeds: it describes the model more than the task."
    ),
    score=measured,
    additive=True,
    signal="fisher",
    spread=2.0,
)
