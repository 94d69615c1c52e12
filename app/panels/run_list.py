"""All comparisons on this machine in a table: look at one, start it again with its settings, open its best adapter."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from analyzers.compare import RunFolder, TrainedAdapter, reported_adapters
from app import components
from app.forms import bound
from app.panels import run_filters, sweep_inputs
from app.panels.trained_adapters import open_clicked
from app.text import markdown
from app.units import bytes_text
from loraxs_core.errors import WorkbenchError

LISTED = 50


def show(runs: list[RunFolder]) -> None:
    """runs: the newest first. Read only while the list is open, as each has a folder of records."""
    if said := st.session_state.pop("runs-said", None):
        st.error(markdown(said), icon=":material/error:")
    if (asked := st.session_state.get("delete-asked")) is not None and asked.config_path.exists():
        _ask(asked)
    box = st.expander(f"All comparisons: {len(runs)}", icon=":material/list:", **bound("all-runs"), on_change="rerun")
    if not box.open:
        return
    with box, components.errors():
        shown = run_filters.chosen(runs)[:LISTED]
        if not shown:
            st.caption("No comparison is like that.")
            return
        best = [best_adapter(run) for run in shown]
        rows = [_row(run, adapter) for run, adapter in zip(shown, best, strict=True)]
        button = st.column_config.ButtonColumn
        st.dataframe(
            pd.DataFrame(rows),
            hide_index=True,
            key="runs-table",
            placeholder="\u2014",
            column_config={
                "look": button("look", on_click=_look, args=(shown,), key="look-at-run"),
                "again": button("again", on_click=_again, args=(shown,), key="run-again-row"),
                "adapter": button("adapter", on_click=open_clicked, args=(best, "open-best"), key="open-best"),
                "delete": button("delete", on_click=_delete, args=(shown,), key="delete-run"),
                "score": st.column_config.NumberColumn(format="%.3f"),
            },
        )


def again(run: RunFolder) -> None:
    """For a button: the settings of `run` into the form, ready to be changed and started."""
    try:
        sweep_inputs.use(run.settings)
        st.toast("The settings of that comparison are in the form.", icon=":material/replay:")
    except WorkbenchError as error:
        st.session_state["runs-said"] = str(error)


def _row(run: RunFolder, best: TrainedAdapter | None) -> dict:
    settings = run.settings
    return {
        "look": "Show",
        "again": "Again",
        "adapter": "Open" if best else "",
        "delete": "Delete",
        "score": best.score if best else None,
        "best adapter": best.label if best else "",
        "state": str(run.status().state),
        "started": f"{run.created.astimezone():%Y-%m-%d %H:%M}",
        "model": settings.model,
        "task": run_filters.task_label(settings.task),
        "steps": settings.steps,
        "seeds": settings.seed_count,
        "methods": ", ".join(settings.method(name).label for name in settings.methods),
    }


def best_adapter(run: RunFolder) -> TrainedAdapter | None:
    """That of the best line of the run's table; None where no line has one."""
    return next(iter(reported_adapters(run).values()), None)


def _look(runs: list[RunFolder]) -> None:
    if (clicked := st.session_state.get("look-at-run")) is not None:
        st.session_state["run"] = runs[clicked.row].name


def _again(runs: list[RunFolder]) -> None:
    if (clicked := st.session_state.get("run-again-row")) is not None:
        again(runs[clicked.row])


def _delete(runs: list[RunFolder]) -> None:
    if (clicked := st.session_state.get("delete-run")) is not None:
        st.session_state["delete-asked"] = runs[clicked.row]


def _keep() -> None:
    st.session_state.pop("delete-asked", None)


@st.dialog("Delete this comparison?", on_dismiss=_keep)
def _ask(run: RunFolder) -> None:
    settings = run.settings
    st.markdown(
        f"{markdown(settings.model)} on {markdown(run_filters.task_label(settings.task))}, started {run.created.astimezone():%Y-%m-%d %H:%M}, "
        f"with its curves, results and trained adapters ({bytes_text(run.bytes)}). This cannot be undone."
    )
    with st.container(horizontal=True):
        sure = st.button("Delete it", type="primary", icon=":material/delete:", key="delete-sure")
        kept = st.button("Keep it", key="delete-not")
    if sure or kept:
        _keep()
    if sure:
        try:
            run.delete()
        except WorkbenchError as error:
            st.session_state["runs-said"] = str(error)
    if sure or kept:
        st.rerun()
