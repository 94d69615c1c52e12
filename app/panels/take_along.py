"""One report of the whole session, from any page; made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from analyzers.compare import RunFolder, find_run, list_runs
from analyzers.memory.gpus import Gpu, find_gpu
from app import on_show, state
from app.remembered import remembered
from app.session_report import MAP_METRIC, Session
from loraxs_core.errors import WorkbenchError


def show() -> None:
    """A button that opens the choice between the two kinds."""
    try:
        checkpoint = state.checkpoint()
    except WorkbenchError:
        return
    plan, model, shown = state.plan(), state.model_name(), st.session_state.get("run")
    metric = st.session_state.get("map-metric", MAP_METRIC)
    plan = plan if plan is not None and plan.model == checkpoint.name else None

    def make(write: Callable[[Session], str]) -> Callable[[], bytes]:
        def made() -> bytes:
            session = Session(
                checkpoint,
                state.spectra(checkpoint),
                plan,
                _run(model, shown),
                on_show.last_card() or _card(),
                on_show.last_fleet(checkpoint, plan),
                on_show.last_training(checkpoint, plan),
                metric,
            )
            return write(session).encode()

        return made

    with st.popover("Report", icon=":material/summarize:", type="tertiary"):
        st.caption("Model, spectra, plan, cost, memory and the comparison on show, in one file.")
        for label, write, name, kind in (
            ("HTML, opens offline", Session.html, "report.html", "text/html"),
            ("Markdown", Session.markdown, "report.md", "text/markdown"),
        ):
            st.download_button(
                label,
                data=make(write),
                file_name=name,
                mime=kind,
                key=f"take-{name}",
                icon=":material/download:",
                on_click="ignore",
            )


def _card() -> Gpu | None:
    """The card that the memory tab asks about, once one was chosen there."""
    chosen = remembered("gpu", str)
    try:
        return find_gpu(chosen) if chosen else None
    except WorkbenchError:
        return None


def _run(model: str, shown: str | None) -> RunFolder | None:
    """The run on show, else the newest of this model."""
    try:
        return find_run(shown) if shown else next((run for run in list_runs() if run.settings.model == model), None)
    except WorkbenchError:
        return None
