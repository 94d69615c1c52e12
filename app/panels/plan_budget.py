"""What a plan may spend, as inputs of the Plan page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from analyzers.memory.settings import position_limit
from analyzers.plans import Budget
from app.forms import bound, limited
from app.options.plan import DEFAULTS, Fits
from app.panels import my_gpu
from loraxs_core.checkpoint import Checkpoint

FITS = "fits"


@dataclass(frozen=True)
class Entry:
    """One kind of budget. label: in the list. asks: what its number is called. most, first, step: of that number. unit: what one of it is
    in the unit of `Budget`."""

    label: str
    asks: str
    most: int
    first: int
    step: int = 1
    unit: int = 1

    def show(self, kind: str) -> Budget:
        """Draws the number; the budget."""
        value = st.number_input(self.asks, 1, self.most, self.first, step=self.step, **bound(kind.replace("_", "-")))
        made: Callable[[int], Budget] = getattr(Budget, kind)
        return made(int(value) * self.unit)


ENTRIES = {
    "like_rank": Entry("Like rank", "As many numbers as uniform rank", 4096, DEFAULTS.budget.value),
    "parameters": Entry("Numbers", "Trained numbers at most", 10**10, 10_000, 1000),
    "adapter_bytes": Entry("Bytes", "Adapter file at most (bytes)", 10**12, 65_536, 1024),
    "lora_parameters": Entry(
        "LoRA's numbers", "Trained numbers of a LoRA with these ranks at most", 10**10, 1_000_000, 100_000
    ),
    "gpu_bytes": Entry("GPU memory of the adapter", "A, B, R and R's optimizer states at most (MB)", 10**6, 64, 8, 10**6),
    "gain_kept": Entry(
        "Share of the gain", "The smallest plan that keeps so much of the strategy's whole gain (%)", 100, 90, 5
    ),
}
LABELS = {**{kind: entry.label for kind, entry in ENTRIES.items()}, FITS: "The largest that fits my GPU"}


def show(checkpoint: Checkpoint) -> tuple[Budget, Fits | None]:
    """The budget; and the training step that is to fit a card, where the budget is what fits."""
    kind = st.selectbox("Budget", list(LABELS), **bound("budget", LABELS.get))
    if kind != FITS:
        return ENTRIES[kind].show(kind), None
    chosen, most = my_gpu.choose(), position_limit(checkpoint) or 10**6
    batch, sequence = st.columns(2)
    fits = Fits(
        chosen[0] if chosen else "",
        int(batch.number_input("Sequences a step", 1, 4096, Fits.batch, **bound("fits-batch"))),
        int(sequence.number_input("Tokens a sequence", 1, most, min(Fits.sequence, most), **limited("fits-sequence", 1, most))),
    )
    return DEFAULTS.budget, fits
