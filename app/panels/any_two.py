"""Any two figures of the methods against each other, with the front through what can be told apart."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from analyzers.compare import RunFolder
from analyzers.compare.fronts import SCORE, front
from app import charts, components
from app.forms import bound

FIGURES = {
    "parameters": "trained numbers, without the head",
    "adapter_file_bytes": "adapter file (bytes)",
    "adapter_bytes": "adapter's tensors (bytes)",
    "file_bytes": "files with the head (bytes)",
    "train_seconds": "training (s)",
    "seconds": "whole trial (s)",
    "svd_seconds": "SVD (s)",
    "peak_memory_bytes": "peak memory (bytes)",
    "tokens_per_second": "tokens a second",
    "energy_kept": "energy kept",
    "learning_rate": "learning rate",
}
LOG = ("parameters", "adapter_file_bytes", "adapter_bytes", "file_bytes", "learning_rate")


def show(run: RunFolder, done: pd.DataFrame, metric: str) -> None:
    """The choice of both and the picture. done: rows with a score, those of other runs among them; metric: as it is called."""
    names = {SCORE: f"test {metric}"} | {
        name: label for name, label in FIGURES.items() if name in done and done[name].notna().any()
    }
    across, up = st.columns(2)
    for key in ("pareto-x", "pareto-y"):
        if st.session_state.get(key, SCORE) not in names:
            del st.session_state[key]
    first = across.selectbox("Across", list(names), index=list(names).index("parameters"), **bound("pareto-x", names.get))
    second = up.selectbox("Upwards", list(names), index=0, **bound("pareto-y", names.get))
    if first == second:
        st.caption("Choose two different figures.")
        return
    rows = done.assign(front=front(done, run.draws(), first, second))
    if (first, second) == ("parameters", SCORE):
        chart = partial(charts.accuracy_against_parameters, rows, metric=names[SCORE])
    else:
        chart = partial(charts.figures_against_each_other, rows, first, second, names, log=LOG)
    components.chart(chart, "pareto", label=f"{names[second]} against {names[first]}")
    if SCORE not in (first, second):
        st.caption(
            "Neither figure has an interval: each was measured once a trial, and the line goes through the plain numbers."
        )
