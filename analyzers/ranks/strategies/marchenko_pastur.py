"""Ranks in proportion to how many directions stand above the noise."""

from __future__ import annotations

from analyzers.ranks.strategies.strategy import Strategy, in_proportion

STRATEGY = Strategy(
    name="marchenko-pastur",
    label="By Marchenko-Pastur",
    summary="Ranks in proportion to how many directions stand above the noise.",
    evidence=(
        "Directions above the Marchenko-Pastur edge, as Spectrum (arXiv 2406.06623) chooses layers to train; no "
        "public evidence shows such ranks beating uniform ones for LoRA-XS."
    ),
    score=in_proportion("mp_spikes"),
    needs_spectra=True,
)
