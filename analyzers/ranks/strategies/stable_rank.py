"""Ranks in proportion to the stable rank of W0: flat spectra get more."""

from __future__ import annotations

from analyzers.ranks.strategies.strategy import Strategy, in_proportion

STRATEGY = Strategy(
    name="stable-rank",
    label="By stable rank",
    summary="Ranks in proportion to the stable rank of W0: flat spectra get more.",
    evidence=(
        "Stable rank (Rudelson & Vershynin 2007) describes the pretrained weights, not the task. In one public "
        "study (a 7B coder model under DP-SGD) such ranks lost to uniform in every pair, though its scaling "
        "alpha/r was not held constant."
    ),
    score=in_proportion("stable_rank"),
    needs_spectra=True,
)
