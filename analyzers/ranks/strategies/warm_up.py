"""Follows what each block of R gained in a short training; within half and twice uniform."""

from __future__ import annotations

from analyzers.ranks.strategies.strategy import Strategy, measured

STRATEGY = Strategy(
    name="warm-up",
    label="By a short warm-up",
    summary="Follows what each block of R gained in a short training; within half and twice uniform.",
    evidence=(
        "A first-order attribution of the loss over a few dozen steps, in the spirit of AdaLoRA's sensitivity "
        "(arXiv 2303.10512). No public result shows it beating uniform ranks for LoRA-XS, and between seeds its "
        "orders hardly agree. Experimental: look at how far the halves agree."
    ),
    score=measured,
    additive=True,
    signal="warm-up",
    spread=2.0,
    experimental=True,
)
