"""Plan: a rank for every layer under a budget, editable, beside the uniform baseline."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from analyzers.memory import MemorySettings, find_gpu
from analyzers.plans import RankPlan
from analyzers.ranks import STRATEGIES, largest_that_fits, make_plan, uniform_baseline
from analyzers.storage import adapter_size
from app import answers, charts, components, state
from app.options.plan import Asked
from app.panels import plan_difference, plan_exports, plan_inputs, rank_advice, rank_editor, sweep_inputs, task_signals
from app.text import markdown
from app.units import bytes_text, percent_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError, WorkbenchError

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from analyzers.spectra import Spectra


def show() -> None:
    """The page."""
    answer = components.heading("Plan", "How many directions each layer gets to train, and what that buys, under one budget.")
    checkpoint = state.checkpoint()
    controls, results = components.panes([1, 2.6], "plan")
    with controls:
        asked, wrong = _asked(checkpoint)
        plan_inputs.kept_plans(checkpoint)
    with results, components.errors():
        if asked is None:
            waits = isinstance(wrong, task_signals.NotYet)
            components.answer(answer, "No plan yet" if waits else "No plan can be made of what is asked")
            if not waits:
                raise wrong
            st.info(markdown(wrong), icon=":material/lightbulb:")
            return
        made = _plan(checkpoint, asked)
        _results(checkpoint, made, asked, answer)


def _asked(checkpoint: Checkpoint) -> tuple[Asked | None, WorkbenchError]:
    """What is asked for; None, and why no plan can meet it, which is said where the plan would be."""
    try:
        return plan_inputs.show(checkpoint), WorkbenchError()
    except WorkbenchError as error:
        return None, error


def _plan(checkpoint: Checkpoint, asked: Asked) -> RankPlan:
    settings = asked.settings
    if settings is None:
        plan = state.plan()
        assert plan is not None
        plan.check(checkpoint)
        return plan
    spectra = None
    if STRATEGIES[settings.strategy].needs_spectra:
        spectra = state.spectra(checkpoint)
        if spectra is None:
            if checkpoint.has_weights:
                st.page_link(components.page_of("spectra"), label="Scan the model first", icon=":material/arrow_forward:")
            raise PlanError(
                f"The strategy “{STRATEGIES[settings.strategy].label}” reads singular values, and "
                + (f"{checkpoint.name} has not been scanned." if checkpoint.has_weights else f"{checkpoint.name} is an architecture without weights; choose another strategy.")
            )  # fmt: skip
    stamp = task_signals.stamp(asked.signals) if asked.signals else ""
    return _made(checkpoint.fingerprint, checkpoint.name, asked, stamp, checkpoint, spectra)


@st.cache_data(max_entries=200, show_spinner="Sharing the budget among the layers…")
def _made(fingerprint: str, name: str, asked: Asked, stamp: str, _checkpoint: Checkpoint, _spectra: Spectra | None) -> RankPlan:
    """stamp: of the file with the signals."""
    assert asked.settings is not None
    read = {"spectra": _spectra, "signals": task_signals.loaded(asked.signals) if asked.signals else None}
    if asked.fits is None:
        return make_plan(_checkpoint, settings=asked.settings, **read)
    step = MemorySettings(batch=asked.fits.batch, sequence=asked.fits.sequence)
    return largest_that_fits(_checkpoint, asked.settings, step, find_gpu(asked.fits.gpu), **read)


@st.cache_data(max_entries=200, show_spinner=False)
def _file_bytes(fingerprint: str, document: dict, _checkpoint: Checkpoint, _plan: RankPlan) -> int:
    return adapter_size(_checkpoint, "lora-xs", plan=_plan).file_bytes


def _results(checkpoint: Checkpoint, made: RankPlan, asked: Asked, answer: DeltaGenerator) -> None:
    spectra = state.spectra(checkpoint)
    totals, figure, advice = st.container(), st.container(), st.container()
    plan, in_view = rank_editor.show(checkpoint, made, spectra)
    frame = plan.frame(checkpoint, spectra)
    with totals:
        size = _totals(plan, frame)
    settings = asked.settings
    limits = {} if settings is None else {"min_rank": settings.min_rank, "max_rank": settings.max_rank}
    uniform = (
        None
        if plan.strategy == "uniform"
        else _uniform(checkpoint.fingerprint, plan.to_dict(), tuple(limits.items()), checkpoint, plan)
    )
    uniform_frame = None if uniform is None else uniform.frame(checkpoint, spectra)
    components.answer(answer, answers.plan(plan, frame, uniform, uniform_frame))
    with figure:
        components.chart(
            partial(charts.rank_bars, frame, uniform=uniform.most_frequent_rank if uniform else None),
            "ranks",
            label="Rank of every module by depth",
        )
    with advice:
        rank_advice.show(checkpoint, task_here=asked.signals is None)
    # Below the table, as all that comes and goes with the ranks: above it, it would move what somebody is typing into.
    plan_difference.show(checkpoint, plan, uniform)
    if not plan.within_budget:
        st.warning(
            f"These ranks take {plan.trainable - plan.budget:,} numbers more than the budget of {plan.budget:,}.",
            icon=":material/warning:",
        )
    st.markdown(f"**What this rests on.** {markdown(plan.evidence)}")
    edits = {name: rank for name, rank in plan.ranks.items() if rank != made.ranks[name]}
    plan_exports.show(checkpoint, plan, asked, edits)
    # Last, as the first count in a session waits for PEFT to be imported; the rest of the page is there by then.
    whole = _file_bytes(checkpoint.fingerprint, plan.to_dict(), checkpoint, plan)
    rank_editor.totals(in_view, plan, made, frame, whole)
    with size:
        st.metric("Adapter file", bytes_text(whole), border=True, help=f"{whole:,} bytes of float32, header included")


def _totals(plan: RankPlan, frame: pd.DataFrame) -> DeltaGenerator:
    """Figures of the whole plan; returns the place for the size of its file."""
    low, high = frame["rank"].min(), frame["rank"].max()
    with components.cards(5 if "energy_at_rank" in frame else 4):
        st.metric("Trained numbers, Σ r²", f"{plan.trainable:,}", border=True)
        st.metric(
            "Of the budget",
            f"{100 * plan.trainable / plan.budget:.1f} %",
            border=True,
            help=f"Budget: {plan.budget:,} trained numbers ({markdown(plan.requested)})",
        )
        size = st.container()
        st.metric("Ranks", f"{low} to {high}" if low < high else f"{low}", border=True, help=f"in {len(frame):,} layers")
        if "energy_at_rank" in frame:
            st.metric(
                "Mean energy at rank",
                percent_text(frame["energy_at_rank"].mean()),
                border=True,
                help="Share of ‖W0‖²_F inside the rank, mean over layers",
            )
    for note in plan.notes:
        st.info(markdown(note), icon=":material/info:")
    in_use = state.plan()
    if in_use is not None and state.identity(in_use) == state.identity(plan):
        st.button("In use on every page", icon=":material/check:", disabled=True, key="used")
        if (
            state.checkpoint().has_weights
            and plan.strategy != "uniform"
            and st.button(
                "Race it against uniform on your task",
                icon=":material/sports_score:",
                key="race",
                help="Puts both, and the head alone, into the Compare page's form, five seeds each: choose the task there and start.",
            )
        ):
            sweep_inputs.race_plan()
            components.go_to("compare")
    elif st.button("Use this plan", type="primary", icon=":material/check:", key="use"):
        state.choose_plan(plan)
        st.rerun()
    return size


@st.cache_data(max_entries=200, show_spinner="Sharing the budget among the layers…")
def _uniform(fingerprint: str, document: dict, limits: tuple, _checkpoint: Checkpoint, _plan: RankPlan) -> RankPlan:
    return uniform_baseline(_checkpoint, _plan, **dict(limits))
