"""Which rank, and at which learning rate: short races on the user's task, started here, and what they answered."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import streamlit as st

from analyzers.compare.forecast import forecast
from analyzers.compare.rank_advice import AdviceSettings, RankAdvice
from analyzers.compare.tasks.metrics import METRIC_LABELS
from app import charts, components, jobs, state
from app.forms import bound
from app.panels import task_input
from app.reproduce import advice
from app.text import markdown
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.progress import seconds

NUMBERS = {
    "steps": ("Steps a trial", 8, 200),
    "seeds": ("Seeds", 2, 3),
    "batch": ("Batch", 1, 32),
    "sequence": ("Tokens a text", 4, 128),
}
DEFAULTS = AdviceSettings(model="", rates=(1.0,))


def show(checkpoint: Checkpoint, *, task_here: bool) -> None:
    """task_here: whether the task is chosen here; where another panel of the page asks for it, it is that one."""
    section = st.expander(
        "Which rank, and at which learning rate, does a task need?",
        icon=":material/query_stats:",
        key="advice-open",
        on_change="rerun",
    )
    if not section.open:
        return
    with section, components.errors():
        st.caption(
            "Rank and learning rate matter more than how ranks are shared. Short races of LoRA-XS over both, rates halved twice on the "
            "validation split; the last round on several seeds beside the head alone."
        )
        if not checkpoint.has_weights:
            raise SettingsError(
                f"{checkpoint.name} is an architecture without weights, so nothing can be raced; choose another model."
            )
        settings = _settings(task_here=task_here)
        if settings is None:
            return
        _run(settings)
        components.reproduce(advice.command(settings), advice.python(settings))


def _settings(*, task_here: bool) -> AdviceSettings | None:
    """What is to be raced, as typed; None where the task is none yet, which is said."""
    task, usable = task_input.show() if task_here else ({"task": st.session_state.get("task", DEFAULTS.task)}, True)
    if not task_here:
        st.caption(f"Task: {markdown(task['task'])}, as chosen to the left.")
    typed = st.text_input("Ranks to try", "4, 8, 16, 32", **bound("advice-ranks"))
    columns = st.columns(len(NUMBERS))
    numbers: dict[str, Any] = {
        name: int(column.number_input(label, low, 1_000_000, first, **bound(f"advice-{name}")))
        for column, (name, (label, low, first)) in zip(columns, NUMBERS.items(), strict=True)
    }
    if not usable:
        return None
    try:
        ranks = [int(part) for part in typed.replace(",", " ").split()]
    except ValueError:
        raise SettingsError(f"Ranks are whole numbers separated by commas, not {typed!r}.") from None
    targets = st.session_state.get("targets") or DEFAULTS.targets
    return AdviceSettings(model=state.model_name(), ranks=ranks, targets=targets, **numbers, **task)


def _run(settings: AdviceSettings) -> None:
    """Start and what it costs, or how it is doing; and the answer, once there is one."""
    key = str(settings.folder)
    running = jobs.status("advise", key)
    if running and running.is_running:
        components.watch("advise", key, "Racing ranks")
        st.caption("The races go on when you leave this page or close it, and are found again here.")
        return
    components.ended("advise", key, "race of ranks")
    try:
        _answer(RankAdvice.load(settings.folder))
    except RunError:
        button, cost = st.columns([1, 3], vertical_alignment="center")
        if button.button("Race the ranks", type="primary", icon=":material/play_arrow:", key="advise", width="stretch"):
            jobs.start("advise", settings.model, key, asked=asdict(settings))
            st.rerun()
        cost.markdown(_cost(settings))


def _cost(settings: AdviceSettings) -> str:
    """``23 trials · about 12 min``."""
    sweeps = [forecast(sweep) for sweep in settings.planned()]
    known = [one.seconds for one in sweeps if one.seconds is not None]
    trials = f"{sum(one.trials for one in sweeps)} trials"
    if len(known) < len(sweeps):
        return f"{trials} · time not measured here yet: a comparison of this model and task would tell"
    return f"{trials} · about **{seconds(sum(known))}**"


def _answer(found: RankAdvice) -> None:
    """The sentence, the curve, the table, and the rank made the budget."""
    st.subheader(markdown(found.sentence), anchor=False)
    metric = METRIC_LABELS.get(found.metric, found.metric)
    frame = found.frame()
    components.chart(partial(charts.score_over_rank, frame, found.head, metric), "advice-curve", label="Score over the rank")
    components.table(
        frame,
        "ranks.csv",
        key="advice-table",
        columns={
            "rate": st.column_config.NumberColumn("learning rate", format="%g"),
            "trained": st.column_config.NumberColumn("trained numbers", format="localized"),
            "score": st.column_config.NumberColumn(metric, format="%.3f"),
            **{name: st.column_config.NumberColumn(f"{name} (95 %)", format="%.3f") for name in ("low", "high")},
            "validation": st.column_config.NumberColumn("on validation", format="%.3f"),
            "behind": st.column_config.NumberColumn("behind the best", format="%.3f"),
            "behind_low": st.column_config.NumberColumn("from", format="%.3f"),
            "behind_high": st.column_config.NumberColumn("to (95 %)", format="%.3f"),
        },
    )
    left, right = st.columns([1, 3], vertical_alignment="center")
    left.button(
        f"Plan with rank {found.smallest}", icon=":material/tune:", key="take-rank", on_click=_take, args=(found,), width="stretch",
        disabled=not found.adapts,
    )  # fmt: skip
    alone, low, high = found.head
    right.caption(
        f"The head alone: {alone:.3f} ({low:.3f} to {high:.3f}). {found.trials} trials, kept in {markdown(found.folder)}."
    )


def _take(found: RankAdvice) -> None:
    """Uniform ranks of what was advised are asked for, and its rate is what a comparison takes."""
    point = next(point for point in found.points if point.rank == found.smallest)
    st.session_state.update(
        {"strategy": "uniform", "budget": "like_rank", "like-rank": point.rank, "rates-lora-xs": f"{point.rate:g}"}
    )
