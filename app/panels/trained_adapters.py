"""Which adapter: a folder that is typed, or one that a comparison on this machine has trained, known by its method, task and score."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from analyzers.compare import TrainedAdapter, trained_adapters
from app import components, state
from app.panels import run_filters
from app.text import markdown

OPENED = "adapter-opened"
LISTED = 30  # rows of the table that opens one with a click


def choose() -> str | None:
    """The field; the folder chosen, or None, and then what could be."""
    st.session_state.pop(OPENED, None)  # it is open here
    known = {str(one.path): one for one in sorted(trained_adapters(), key=_other_model)}
    now = state.adapter()
    options = [*known, *([now] if now and now not in known else [])]
    chosen = st.selectbox(
        "Adapter folder (type a path, or choose one trained on the Compare page)",
        options,
        index=options.index(now) if now else None,
        format_func=lambda path: line(known[path]) if path in known else path,
        accept_new_options=True,
        placeholder="/path/to/adapter",
        key=f"adapter-of-{now}",
    )
    if chosen != now:
        state.open_adapter(chosen)
        st.rerun()
    if chosen is None:
        _nothing_yet(list(known.values()))
    return chosen


def line(one: TrainedAdapter) -> str:
    """``LoRA-XS on STS-B · Pearson r 0.812 · minilm · 2026-11-26 18:38 · seed 0``."""
    score = "no score" if one.score is None else f"{one.metric} {one.score:.3f}"
    parts = [f"{one.label} on {_task(one)}", score, one.model, _when(one), f"seed {one.seed}"]
    return "  ·  ".join(parts if one.chosen else [*parts, f"rate {one.learning_rate:g}"])


def _nothing_yet(known: list[TrainedAdapter]) -> None:
    st.info(
        "Open the folder that PEFT's save_pretrained wrote (adapter_config.json and adapter_model.safetensors). A LoRA-XS adapter is "
        f"checked module by module against {markdown(state.model_name())}, exported as a plain LoRA or merged; of a LoRA or a full "
        "fine-tune you see what LoRA-XS would keep of it at every rank.",
        icon=":material/lightbulb:",
    )
    if not known:
        st.page_link(components.page_of("compare"), label="Train some on the Compare page", icon=":material/arrow_forward:")
        return
    st.subheader("Trained on this machine", anchor=False)
    shown = known[:LISTED]
    table = pd.DataFrame(
        {
            "open": "Open",
            "method": [one.label for one in shown],
            "task": [_task(one) for one in shown],
            "score": [one.score for one in shown],
            "metric": [one.metric for one in shown],
            "model": [one.model for one in shown],
            "trained": [_when(one) for one in shown],
            "seed": [one.seed for one in shown],
        }
    )
    st.dataframe(
        table,
        hide_index=True,
        key="trained-adapters",
        column_config={
            "open": st.column_config.ButtonColumn(
                "open", on_click=open_clicked, args=(shown, "open-trained"), key="open-trained"
            ),
            "score": st.column_config.NumberColumn(format="%.3f"),
        },
    )


def open_clicked(rows: list[TrainedAdapter | None], key: str) -> None:
    """For the button of a table's row: opens the adapter of that row, and with it the model it was trained on."""
    clicked = st.session_state.get(key)
    chosen = rows[clicked.row] if clicked is not None else None
    if chosen is not None:
        open_adapter(chosen)


def open_adapter(one: TrainedAdapter) -> None:
    """For a button: opens the adapter, and with it the model it was trained on."""
    state.choose_model(one.model)
    state.open_adapter(str(one.path))
    st.session_state[OPENED] = True


def to_the_opened() -> None:
    """Leads to the Adapters page when a button has opened one there: its callback cannot."""
    if st.session_state.pop(OPENED, False):
        components.go_to("adapters")


def _other_model(one: TrainedAdapter) -> bool:
    return one.model != state.model_name()


def _task(one: TrainedAdapter) -> str:
    return run_filters.task_label(one.task)


def _when(one: TrainedAdapter) -> str:
    return f"{one.created.astimezone():%Y-%m-%d %H:%M}"
