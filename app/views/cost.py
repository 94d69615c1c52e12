"""Cost: what an adapter weighs, what a fleet of them costs to keep, and whether training fits a GPU."""

from __future__ import annotations

import streamlit as st

from analyzers.methods import MAIN_METHODS, METHODS
from app import components, state
from app.forms import bound
from app.panels import adapter_storage, training_memory
from app.reproduce import adapters
from app.text import markdown
from app.units import count_text
from loraxs_core.checkpoint import Checkpoint

MEMORY = "GPU memory of training"


def show() -> None:
    """The page."""
    answer = components.heading(
        "Cost", "What one adapter weighs, what a fleet of them costs to keep, and whether training fits your card."
    )
    checkpoint = state.checkpoint()
    with components.errors():
        ranks = _ranks(checkpoint)
        # Only the half one looks at is worked out.
        size, memory = st.tabs(["On disk: one adapter and a fleet", MEMORY], **bound("cost-tab"), on_change="rerun")
        if size.open:
            with size, components.errors():
                adapter_storage.show(checkpoint, ranks, answer)
        if memory.open:
            with memory, components.errors():
                training_memory.show(checkpoint, ranks, adapters.targets(checkpoint, state.plan()), answer.empty())


def _ranks(checkpoint: Checkpoint) -> dict[str, dict]:
    """Method -> the rank or the plan it is counted with."""
    plan = state.plan()
    if plan is not None:
        plan.check(checkpoint)
    columns = st.columns([1, 1, 1, 1.6], vertical_alignment="bottom")
    ranks = {}
    for column, method in zip(columns, MAIN_METHODS, strict=False):
        known = METHODS[method]
        if method == "lora-xs" and plan is not None:
            follow = columns[3].toggle(
                f"LoRA-XS by the plan in use ({markdown(plan.strategy)}, {count_text(plan.trainable)} numbers)",
                value=True,
                **bound("by-plan"),
            )
            if follow:
                column.text_input("Rank of LoRA-XS", "by the plan", disabled=True, key="rank-by-plan")
                ranks[method] = {"plan": plan}
                continue
        value = column.number_input(f"Rank of {known.label}", 1, 8192, known.default_rank, **bound(f"rank-{method}"))
        ranks[method] = {"rank": int(value)}
    if plan is None:
        columns[3].page_link(
            components.page_of("plan"),
            label="No plan in use: make one",
            icon=":material/tune:",
        )
    return ranks
