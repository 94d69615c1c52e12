"""What one training run leaves on disk: checkpoints with the optimizer's state, by save interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from analyzers.storage import OPTIMIZERS, AdapterSize, run_bytes
from app import components
from app.forms import bound, folded, value
from app.units import bytes_text

# What the inputs hold when nothing was typed.
USUAL: dict[str, Any] = {"run-steps": 1000, "run-every": 500, "run-keep": None, "run-optimizer": next(iter(OPTIMIZERS))}


def show(sizes: Mapping[str, AdapterSize]) -> dict:
    """Draws the panel; returns the run as keyword arguments of `run_bytes`. sizes: method -> size of one adapter."""
    if place := folded("What one training run writes to disk", ":material/save:", USUAL):
        with place:
            _inputs()
            with components.errors():
                _table(sizes)
    return _run()


def _table(sizes: Mapping[str, AdapterSize]) -> None:
    written = {size.label: run_bytes(size, **_run()) for size in sizes.values()}
    frame = pd.DataFrame(
        [
            {
                "method": label,
                "checkpoints": one.saves,
                "one checkpoint (B)": one.each,
                "of it optimizer state (B)": one.optimizer,
                "written in all (B)": one.written,
                "left on disk (B)": one.on_disk,
            }
            for label, one in written.items()
        ]
    )
    st.markdown(
        "Left on disk at the end: "
        + "; ".join(f"{label} **{bytes_text(one.on_disk)}**" for label, one in written.items())
        + "."
    )
    whole = st.column_config.NumberColumn(format="localized")
    components.table(frame, "run.csv", key="run-table", columns=dict.fromkeys(frame.columns[1:], whole))
    st.caption(
        "As transformers' Trainer writes them: the adapter's folder, optimizer.pt, and about 23 kB of its own. LoRA-XS "
        "trains R in float32 whatever precision it is saved in; the others train in the precision they are saved in."
    )


def _inputs() -> None:
    steps, every, keep, optimizer = st.columns([1, 1, 1, 1.6])
    steps.number_input("Steps of the run", 1, 10**9, USUAL["run-steps"], step=100, **bound("run-steps"))
    every.number_input("Saves every … steps", 1, 10**9, USUAL["run-every"], step=100, **bound("run-every"))
    keep.number_input(
        "Checkpoints kept",
        1,
        10**6,
        USUAL["run-keep"],
        placeholder="all",
        **bound("run-keep"),
        help="The Trainer's save_total_limit.",
    )
    optimizer.selectbox("Optimizer", list(OPTIMIZERS), **bound("run-optimizer", OPTIMIZERS.get))


def _run() -> dict:
    said = {key: value(key, usual) for key, usual in USUAL.items()}
    return {
        "steps": int(said["run-steps"]),
        "save_every": int(said["run-every"]),
        "keep": said["run-keep"],
        "optimizer": said["run-optimizer"],
    }
