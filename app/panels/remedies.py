"""Buttons that make the training step smaller, each with what it saves."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from analyzers.memory import MemoryEstimate, Remedy, gain, remedies
from analyzers.memory.gpus import Gpu
from app.panels import memory_inputs
from app.panels.memory_inputs import Question
from app.units import gib_text
from loraxs_core.errors import WorkbenchError


def show(label: str, own: Question, estimate: MemoryEstimate, card: Gpu | None, traced: Callable[..., MemoryEstimate]) -> None:
    """A row of buttons, each drawn when its gain is known; it says so where it makes the step fit a card that does not hold it yet. own: what was asked; estimate: its answer. traced: estimates, with a cache."""
    row = st.container(horizontal=True, vertical_alignment="center", key="remedies")
    for remedy in remedies(own.checkpoint, own.settings):
        try:
            after = traced((*own.key, tuple(remedy.changes.items())), own.checkpoint, own.settings.but(**remedy.changes))
        except WorkbenchError:
            continue  # not for this architecture
        if saved := gain(estimate, after):
            _button(row, remedy, saved, after, label, card, news=card is not None and estimate.interval[1] > card.bytes)


def _button(
    row: st.delta_generator.DeltaGenerator,
    remedy: Remedy,
    saved: int,
    after: MemoryEstimate,
    label: str,
    card: Gpu | None,
    *,
    news: bool,
) -> None:
    fits = ", fits" if news and card is not None and after.interval[1] <= card.bytes else ""
    row.button(
        f"{remedy.label}: \u2212{gib_text(saved)}{fits}",
        key=f"remedy-{'-'.join(remedy.changes)}",
        on_click=memory_inputs.apply,
        args=(remedy.changes,),
        help=f"{remedy.price} {label} would then peak at {gib_text(after.peak_reserved)}.",
    )
