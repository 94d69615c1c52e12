"""Follows how many directions the layers' inputs have on the task, as EVA does; within half and twice uniform."""

from __future__ import annotations

from analyzers.ranks.strategies.strategy import Strategy, measured

STRATEGY = Strategy(
    name="activation",
    label="By activation (EVA)",
    summary="Follows how many directions the layers' inputs have on the task, as EVA does; within half and twice uniform.",
    evidence=(
        "EVA's rule (arXiv 2410.07170): pooled explained variance of what each layer reads, largest shares first. "
        "Stable between calibration seeds, but it describes the model's activations; no public evidence shows it "
        "beating uniform ranks for LoRA-XS."
    ),
    score=measured,
    additive=True,
    signal="activation",
    spread=2.0,
)
