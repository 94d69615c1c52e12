"""Ranks in proportion to the optimal hard threshold's rank."""

from __future__ import annotations

from analyzers.ranks.strategies.strategy import Strategy, in_proportion

STRATEGY = Strategy(
    name="gavish-donoho",
    label="By Gavish-Donoho",
    summary="Ranks in proportion to the optimal hard threshold's rank.",
    evidence=(
        "The optimal hard threshold for a matrix in noise (Gavish & Donoho 2014) says how to denoise W0, not how "
        "to adapt it; no public evidence shows such ranks beating uniform ones for LoRA-XS."
    ),
    score=in_proportion("gavish_donoho_rank"),
    needs_spectra=True,
)
