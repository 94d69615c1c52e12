"""One run on the Compare page: how it is doing, its curves as they grow, and its results."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analyzers.compare import RunFolder, State
from analyzers.compare.overlays import metrics_of
from analyzers.compare.statistics import verdict
from analyzers.compare.summary import paired_differences
from analyzers.compare.tasks import METRIC_LABELS
from app import charts, components, forms
from app.forms import bound
from app.panels import race_results
from app.panels.run_list import again, best_adapter
from app.panels.trained_adapters import line, open_adapter, to_the_opened
from app.text import markdown
from loraxs_core.errors import WorkbenchError
from loraxs_core.progress import seconds

POLL_SECONDS = 1.0
BESIDE = "runs-beside"  # key of the choice of other runs
STATES = {
    State.DONE: "green",
    State.RUNNING: "blue",
    State.STARTING: "blue",
    State.CANCELLED: "gray",
    State.FAILED: "red",
    State.CRASHED: "red",
    State.NEW: "gray",
}


def show(run: RunFolder, runs: dict[str, RunFolder], answer: DeltaGenerator, bar: DeltaGenerator) -> None:
    """Everything about `run`. runs: all runs by name, to set it beside. answer, bar: the places of the page's answer and of the progress."""
    running = run.status().is_running
    beside = _beside(run, runs)

    # A run that goes on is read again every second; one that has ended is read once. The results keep their places when it ends:
    # drawn elsewhere, they would stand on the page twice until the browser has taken the old ones away.
    @st.fragment(run_every=POLL_SECONDS if running else None)
    def live() -> None:
        status = run.status()
        if running and not status.is_running:
            components.notice(f"{status.state}: comparison")
            st.rerun()
        with components.errors():  # its folder may be renamed or removed under the page
            with st.container():
                _status(run, bar)
            race_results.answer(run, answer)
            with st.container():
                _curves(run, beside)
            with st.container():
                _failures(run)
            with st.container():
                race_results.show(run, beside)
        to_the_opened()
        forms.remember()  # a fragment runs without the end of the page

    live()
    if not running:
        _details(run, runs)


def _status(run: RunFolder, bar: DeltaGenerator) -> None:
    status = run.status()
    if status.is_running:
        left = f", {seconds(status.eta_seconds)} left" if status.eta_seconds is not None else ""
        bar.progress(min(1.0, status.fraction), text=markdown(f"{100 * status.fraction:.0f} %{left}. {status.message}"))
        said, stop = st.columns([6, 1], vertical_alignment="center")
        said.caption(f"{status.trials_done} of {status.trials_total or len(run.settings.trials())} trials{left}.")
        if stop.button("Cancel", key="cancel-run", icon=":material/stop_circle:", width="stretch"):
            run.cancel()
            st.rerun()
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(status.state, color=STATES[status.state])
        st.caption(
            f"{status.trials_done} of {status.trials_total or len(run.settings.trials())} trials. {markdown(status.message)}"
        )
        if (best := best_adapter(run)) is not None:
            st.button(
                "Open the best adapter", icon=":material/extension:", key="open-the-best", type="tertiary", on_click=open_adapter, args=(best,),
                help=f"{markdown(line(best))}: what is in it, and what can be written from it.",
            )  # fmt: skip
        st.button(
            "Run again with these settings", icon=":material/replay:", key="run-again", type="tertiary", on_click=again, args=(run,),
            help="Puts them into the form, to be changed and started.",
        )  # fmt: skip
    if status.error:
        st.error(markdown(status.error), icon=":material/error:")
    if status.state.can_be_resumed and st.button(
        "Resume", icon=":material/play_arrow:", key="resume", help="Finished trials are kept."
    ):
        with components.errors():
            run.start()
            st.rerun()


def _beside(run: RunFolder, runs: dict[str, RunFolder]) -> list[RunFolder]:
    """Other runs that are drawn into the same plots."""
    others = [name for name in runs if name != run.name]
    if not others:
        return []
    if BESIDE in st.session_state:
        st.session_state[BESIDE] = [name for name in st.session_state[BESIDE] if name in others]
    chosen = st.multiselect(
        "Draw with it",
        others,
        placeholder="no other run",
        **bound(BESIDE),
        help="Curves and scores of other runs, on the same plots.",
    )
    return [runs[name] for name in chosen]


def _curves(run: RunFolder, beside: list[RunFolder]) -> None:
    frame = metrics_of(run, beside)
    if frame.empty:
        st.caption(
            "The first points of the curves appear when the first trial has read its data and built its adapter."
            if run.status().is_running
            else "It ended before the first point of a curve."
        )
        return
    known = [name for name in frame.columns if name in METRIC_LABELS and frame[name].notna().any()]
    axes = ["step", "epoch", *(["seconds"] if frame["seconds"].notna().any() else [])]
    if st.session_state.get("curve-axis", "step") not in axes:
        del st.session_state["curve-axis"]
    what, axis, smooth, scale = st.columns([2, 1.6, 1.6, 1], vertical_alignment="bottom")
    shown = what.selectbox("Curve", ["loss", *known], **bound("curve", _curve_label))
    x = axis.segmented_control("Axis", axes, default="step", required=True, **bound("curve-axis"))
    smoothing = smooth.slider("Smoothing of training loss", 0.0, 0.99, 0.6, **bound("smoothing"))
    log = scale.toggle("Log scale", **bound("curve-log"))
    if shown != "loss":
        frame = frame[frame["kind"] == "eval"].assign(value=lambda table: table[shown])
    figure = partial(
        charts.training_curves,
        frame,
        x=x,
        title="loss" if shown == "loss" else _curve_label(shown),
        smoothing=smoothing if shown == "loss" else 0.0,
        log=log,
    )
    components.chart(figure, "curves", label=f"{_curve_label(shown)} while training")
    if frame.groupby("label")["trial"].nunique().max() > 1:
        st.caption("One line a trial: the first of a method is solid, its other seeds and learning rates are dashed or dotted.")


def _curve_label(name: str) -> str:
    return "loss (training thin, validation with marks)" if name == "loss" else f"validation {METRIC_LABELS.get(name, name)}"


def _failures(run: RunFolder) -> None:
    for failure in run.failures():
        st.error(markdown(f"{failure['label']}, seed {failure['seed']}: {failure['error']}"), icon=":material/error:")
    for remark in run.remarks():
        st.warning(markdown(remark), icon=":material/warning:")


def _details(run: RunFolder, runs: dict[str, RunFolder]) -> None:
    results = run.results()
    if not results.empty:
        with st.expander("Every trial", icon=":material/table_rows:"):
            components.table(results, f"{run.name}-trials.csv", key="trials")
        _paired(run, results)
    with st.expander("Settings, and what differs from another run", icon=":material/difference:"):
        _differences(run, runs)
    with st.expander("Log", icon=":material/article:"):
        st.caption(f"Run folder: {markdown(run.path)}")
        st.code(run.log() or "(empty)", language=None)


def _paired(run: RunFolder, results: pd.DataFrame) -> None:
    """Differences seed by seed, where there are several seeds; against uniform ranks first, where the run has a plan of these."""
    if results["seed"].nunique() < 2 or "score" not in results:
        return
    with st.expander("Paired differences, seed by seed", icon=":material/compare_arrows:"), components.errors():
        scored = results.dropna(subset=["score"])
        uniform = [label for label, plan in run.settings.rank_plans().items() if plan.strategy == "uniform"]
        first = scored.loc[scored["plan"].isin(uniform), "label"] if "plan" in scored else []
        labels = list(dict.fromkeys([*first, *scored["label"]]))
        forms.only("against", labels)
        against = st.selectbox("Against", labels, index=0, **bound("against"))
        table = paired_differences(results, against)
        st.markdown("\n".join(f"- {markdown(verdict(row))}" for row in table.to_dict("records")))
        components.table(table, "paired.csv", key="paired")
        st.caption(
            "Mean difference in the test score and its 95 % interval (Student's t): an interval that holds 0 shows no difference. Each interval "
            "holds by itself; p_holm is corrected for all the comparisons here (Holm)."
        )


def _differences(run: RunFolder, runs: dict[str, RunFolder]) -> None:
    own = _plain(run)
    others = [name for name in runs if name != run.name]
    forms.only("other-run", [None, *others])
    other = st.selectbox(
        "Compare with", others, index=None, placeholder="no other run: show all settings", **bound("other-run")
    )
    if other is None:
        table = pd.DataFrame({"setting": list(own), "value": list(own.values())})
    else:
        with components.errors():
            theirs = _plain(runs[other])
            table = pd.DataFrame(
                [
                    {"setting": key, "this run": own[key], other: theirs.get(key, "")}
                    for key in own
                    if own[key] != theirs.get(key)
                ]
            )
    if table.empty:
        st.caption("The two runs have the same settings.")
        return
    components.table(table, f"{run.name}-settings.csv", key="settings")


def _plain(run: RunFolder) -> dict[str, str]:
    """The settings as words; a plan by its label alone."""
    try:
        settings = run.settings.to_dict()
    except WorkbenchError:
        return {}
    return {key: ", ".join(value) if key == "plans" else _words(value) for key, value in settings.items()}


def _words(value: object) -> str:
    """A setting without Python's brackets: ``lora 8, vera 256``."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return "" if value is None else str(value)
