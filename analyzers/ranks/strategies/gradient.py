"""Ranks by the first-order gain of the task: where a gradient step of R lowers the loss most, at bounded spread."""

from __future__ import annotations

from analyzers.ranks.strategies.strategy import Strategy, measured

STRATEGY = Strategy(
    name="gradient",
    label="By gradient",
    summary="Follows the task's gradient at the start of training; ranks stay between half and twice the uniform rank.",
    evidence=(
        "Rests on the first-order gain of plain gradient descent, ‖G[:r, :r]‖² of the gradient of R at 0. No public result shows it "
        "beating uniform ranks for LoRA-XS, and its plans differ between calibration seeds; without bounds it collapses to rank 1 in "
        "most layers. Experimental: look at how far the two halves of the calibration data agree."
    ),
    score=measured,
    additive=True,
    signal="gradient",
    spread=2.0,
    experimental=True,
)
