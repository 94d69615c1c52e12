"""Follows the first-order gain of Adam's steps; within half and twice uniform."""

from __future__ import annotations

from analyzers.ranks.strategies.strategy import Strategy, measured

STRATEGY = Strategy(
    name="adam-gradient",
    label="By Adam's gradient",
    summary="Follows the first-order gain of Adam's steps; within half and twice uniform.",
    evidence=(
        "Under Adam the first-order gain of a step is the sum of g²/√E[g²] over the block, not of g². No public "
        "result shows it beating uniform ranks, and its plans differ much between calibration seeds. Experimental: "
        "look at how far the halves agree."
    ),
    score=measured,
    additive=True,
    signal="adam",
    spread=2.0,
    experimental=True,
)
