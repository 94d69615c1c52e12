"""Ranks in proportion to the entropy of the singular values."""

from __future__ import annotations

from analyzers.ranks.strategies.strategy import Strategy, in_proportion

STRATEGY = Strategy(
    name="effective-rank",
    label="By effective rank",
    summary="Ranks in proportion to the entropy of the singular values.",
    evidence=(
        "Effective rank (Roy & Vetterli 2007) describes the pretrained weights, not the task; no public evidence "
        "shows such a plan beating uniform ranks for LoRA-XS."
    ),
    score=in_proportion("effective_rank"),
    needs_spectra=True,
)
