"""Compare: race methods and rank plans on a task, watch them live, and read what came out."""

from __future__ import annotations

from collections import Counter

import streamlit as st

from analyzers.compare import BrokenRun, RunFolder, SweepSettings, open_task, survey_runs
from analyzers.compare.writing_room import refuse_no_room, short_of_room
from app import components, state
from app.forms import bound
from app.panels import one_run, run_filters, run_list, sweep_cost, sweep_inputs
from app.reproduce import sweeps
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WorkbenchError


def show() -> None:
    """The page."""
    top = components.heading(
        "Compare", "LoRA, VeRA and LoRA-XS on one task: same data order, same head at the start, a learning rate each."
    )
    answer, bar = top.empty(), top.empty()
    form, results = components.panes([1, 2.6], "compare")
    with form:
        try:
            checkpoint = state.checkpoint()
        except WorkbenchError as error:
            components.unopened(error)
        else:
            with components.errors():
                _new(checkpoint)
    with results, components.errors():
        found = survey_runs()
        _broken(found.broken)
        runs = {run.name: run for run in found.sound}
        if not runs:
            components.answer(answer, "No comparison yet")
            st.info(
                "No comparison yet. Choose a task and methods to the left and start one: it runs as a process of its own, its curves "
                "are drawn here as they grow, and it goes on when this page is closed.",
                icon=":material/lightbulb:",
            )
            return
        one_run.show(_chosen(runs), runs, answer, bar)
        run_list.show(found.sound)


def _broken(broken: list[BrokenRun]) -> None:
    """Run folders that cannot be read, and why."""
    if not broken:
        return
    with st.expander(f"{len(broken)} run folder{'s' * (len(broken) > 1)} cannot be read", icon=":material/folder_off:"):
        for run in broken:
            st.text(f"{run.name}: {run.reason}")


def _chosen(runs: dict[str, RunFolder]) -> RunFolder:
    """The run on show: named by the address, else the newest."""
    if st.session_state.get("run", next(iter(runs))) not in runs:
        st.session_state["run"] = next(
            iter(runs)
        )  # set, so that the browser does not go on showing the line of one that is gone
    name = st.selectbox("Run (newest first)", list(runs), **bound("run", _labels(runs).get))
    return runs[name]


def _labels(runs: dict[str, RunFolder]) -> dict[str, str]:
    """Name -> line in the list. A browser knows an option by its line alone: no two may be the same, and none may change later."""
    lines = {name: _line(run) for name, run in runs.items()}
    often = Counter(lines.values())
    return {name: f"{line}  ·  {name}" if often[line] > 1 else line for name, line in lines.items()}


def _line(run: RunFolder) -> str:
    """A run in the list; nothing that changes while it goes on (see `_labels`)."""
    settings = run.settings
    methods = ", ".join(settings.method(name).label for name in settings.methods)
    when = run.created.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{when}  ·  {settings.model} on {run_filters.task_label(settings.task)}  ·  {methods}"


def _new(checkpoint: Checkpoint) -> None:
    """The settings of a new comparison; above them Start and what they come to, in view without a scroll."""
    st.subheader("New comparison", anchor=False)
    start = st.container()
    if not checkpoint.has_weights:
        components.needs(
            f"{checkpoint.name} is an architecture without weights, so it cannot be trained.", "model", "Choose another model"
        )
        return
    settings = sweep_inputs.show()
    if settings is None:
        start.button("Start", icon=":material/play_arrow:", key="start", width="stretch", disabled=True)
        return
    with components.errors():
        sweep = SweepSettings(model=state.model_name(), **settings)
        task = open_task(sweep.task, sweep.columns)
        refuse_no_room(checkpoint, task)
        if short := short_of_room(checkpoint, task, sweep.sequence):
            start.caption(short)
        components.reproduce(sweeps.command(sweep, checkpoint), sweeps.python(sweep, checkpoint))
        with start:
            sweep_cost.show(sweep)
