"""What a comparison will take, beside its Start: trials, time, memory, disk, by what this machine has measured."""

from __future__ import annotations

import streamlit as st

from analyzers.compare import SweepSettings, start_sweep
from analyzers.compare.forecast import STEPS, Forecast, forecast, measure, measurements
from app.text import markdown
from app.units import bytes_text
from loraxs_core.errors import WorkbenchError
from loraxs_core.progress import seconds

POLL_SECONDS = 1.0


def show(sweep: SweepSettings) -> None:
    """Start and what it costs."""
    found = forecast(sweep)
    button, cost = st.columns([1, 2], vertical_alignment="center")
    if button.button("Start", type="primary", icon=":material/play_arrow:", key="start", width="stretch"):
        st.session_state["run"] = start_sweep(sweep).name
        st.rerun()
    cost.markdown(words(sweep, found))
    if found.guessed:
        cost.caption(f"Not measured here yet, reckoned as the slowest of the others: {markdown(', '.join(found.guessed))}.")
    if found.seconds is None or found.guessed:
        _measure(sweep)


def words(sweep: SweepSettings, found: Forecast) -> str:
    """``12 trials of 200 steps · about 4 min · 1.2 GB of memory · 3 MB on disk``."""
    said = [f"{found.trials} trials of {sweep.steps} steps"]
    if found.seconds is None:
        said.append("time not measured here yet")
    else:
        said += [
            f"{'at most' if sweep.tune_lr else 'about'} **{seconds(found.seconds)}**",
            f"{bytes_text(found.peak)} of memory",
            f"{bytes_text(found.files)} of adapters on disk",
        ]
    return " · ".join(said)


def _measure(sweep: SweepSettings) -> None:
    """A button that measures some steps of each method, and how that is doing."""
    known = measurements(sweep)
    if known and known[0].status().is_running:

        @st.fragment(run_every=POLL_SECONDS)
        def poll() -> None:
            status = known[0].status()
            if not status.is_running:
                st.rerun()
            st.progress(min(1.0, status.fraction), text=markdown(f"Measuring: {status.message}"))

        poll()
        return
    if known and (error := known[0].status().error):
        st.error(markdown(error), icon=":material/error:")
    if st.button(
        f"Measure {STEPS} steps first", icon=":material/timer:", key="measure", type="tertiary",
        help="Of each method, with one evaluation: tells time, memory and disk before you start.",
    ):  # fmt: skip
        try:
            measure(sweep)
        except WorkbenchError as error:
            st.error(markdown(error), icon=":material/error:")
            return
        st.rerun()
