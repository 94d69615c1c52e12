"""What one training run leaves on disk: checkpoints with the optimizer's state, by save interval."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from analyzers.storage import OPTIMIZERS, AdapterSize, run_bytes
from app import components
from app.forms import bound
from app.units import bytes_text


def show(sizes: Mapping[str, AdapterSize]) -> dict:
    """Draws the panel; returns the run as keyword arguments of `run_bytes`. sizes: method -> size of one adapter."""
    with st.expander("What one training run writes to disk", icon=":material/save:"):
        run = _run()
        with components.errors():
            written = {size.label: run_bytes(size, **run) for size in sizes.values()}
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
    return run


def _run() -> dict:
    steps, every, keep, optimizer = st.columns([1, 1, 1, 1.6])
    return {
        "steps": int(steps.number_input("Steps of the run", 1, 10**9, 1000, step=100, **bound("run-steps"))),
        "save_every": int(every.number_input("Saves every … steps", 1, 10**9, 500, step=100, **bound("run-every"))),
        "keep": keep.number_input(
            "Checkpoints kept",
            1,
            10**6,
            None,
            placeholder="all",
            **bound("run-keep"),
            help="The Trainer's save_total_limit.",
        ),
        "optimizer": optimizer.selectbox("Optimizer", list(OPTIMIZERS), **bound("run-optimizer", OPTIMIZERS.get)),
    }
