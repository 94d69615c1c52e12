"""What a plan is asked to be, as inputs of the Plan page; and the plans that were used before, to take up again."""

from __future__ import annotations

import dataclasses

import streamlit as st

from analyzers.plans import Budget, PlanSettings, RankPlan
from analyzers.ranks import STRATEGIES
from app import state
from app.forms import bound, limited
from app.options.plan import DEFAULTS
from app.text import markdown
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WorkbenchError

IN_USE = "in-use"
BUDGETS = {"like_rank": "Like rank", "parameters": "Numbers", "adapter_bytes": "Bytes"}
TARGETS = {"paper": "as in the LoRA-XS paper", "all-linear": "every attention and MLP layer"}


def show(checkpoint: Checkpoint) -> PlanSettings | None:
    """What is asked for; None: the plan in use."""
    in_use = state.plan()
    names = [*([IN_USE] if in_use else []), *STRATEGIES]
    labels = {IN_USE: "The plan in use", **{name: entry.label for name, entry in STRATEGIES.items()}}
    if st.session_state.get("strategy") not in names:
        st.session_state.pop("strategy", None)  # of another model, or of a plan that is gone
    strategy = st.selectbox("Strategy", names, **bound("strategy", labels.get))
    if strategy == IN_USE and in_use is not None:
        st.caption(
            f"Strategy: {markdown(in_use.strategy)}. Budget: {markdown(in_use.requested)}. Choose a strategy above to make another plan."
        )
        return None
    st.caption(STRATEGIES[strategy].summary)
    kind = st.segmented_control(
        "Budget",
        list(BUDGETS),
        default="like_rank",
        required=True,
        **bound("budget", BUDGETS.get),
    )
    if kind == "like_rank":
        value = st.number_input("As many numbers as uniform rank", 1, 4096, DEFAULTS.budget.value, **bound("like-rank"))
    elif kind == "parameters":
        value = st.number_input("Trained numbers at most", 1, 10**10, 10_000, step=1000, **bound("parameters"))
    else:
        value = st.number_input("Adapter file at most (bytes)", 1, 10**12, 65_536, step=1024, **bound("adapter-bytes"))
    targets = st.selectbox(
        "Target modules",
        list(TARGETS),
        accept_new_options=True,
        **bound("targets", lambda name: f"{name}: {TARGETS[name]}" if name in TARGETS else name),
        help="Or type module suffixes or roles, separated by commas: q_proj, v_proj or mlp.down",
    )
    low, high = st.columns(2)
    largest = max(weight.full_rank for weight in checkpoint.linear)
    min_rank = low.number_input("Smallest rank", 1, largest, DEFAULTS.min_rank, **limited("min-rank", 1, largest))
    max_rank = high.number_input("Largest rank", 1, largest, None, placeholder="no limit", **limited("max-rank", 1, largest))
    scaling = st.number_input(
        "Scaling α/r, the same in every layer", 0.0, 64.0, DEFAULTS.alpha_over_r, step=0.5, **bound("scaling"),
        help="Held constant, so that the learning rate means the same in layers of different rank.",
    )  # fmt: skip
    return PlanSettings(
        strategy=strategy,
        budget=getattr(Budget, kind)(int(value)),
        targets=targets or DEFAULTS.targets,
        min_rank=int(min_rank),
        max_rank=None if max_rank is None else int(max_rank),
        alpha_over_r=float(scaling),
    )


def kept_plans(checkpoint: Checkpoint) -> None:
    """The plans used before on this model, and one from a file, to take up again."""
    kept = state.kept_plans()
    with st.expander(f"Plans kept: {len(kept)}" if kept else "Open a plan", icon=":material/history:"):
        if said := st.session_state.pop("plan-said", None):
            st.error(markdown(said), icon=":material/error:")
        chosen = st.selectbox(
            "Used before on this model, the newest first", list(kept), index=None, format_func=lambda name: line(name, kept[name]),
            placeholder="choose one" if kept else "none yet: “Use this plan” keeps one", key="kept-plan",
        )  # fmt: skip
        st.button("Open it", key="open-plan", disabled=chosen is None, on_click=_open, args=(kept.get(chosen),))
        st.file_uploader("Or a plan.json", type="json", key="plan-upload", on_change=_upload, args=(checkpoint,))


def line(name: str, plan: RankPlan) -> str:
    """A plan in a list."""
    low, high = min(plan.ranks.values()), max(plan.ranks.values())
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    return f"{plan.strategy}  ·  {ranks} in {len(plan.ranks)} layers  ·  {plan.trainable:,} numbers  ·  {name}"


def _open(plan: RankPlan) -> None:
    state.choose_plan(plan)
    st.session_state["strategy"] = IN_USE
    st.session_state["kept-plan"] = None


def _upload(checkpoint: Checkpoint) -> None:
    file = st.session_state["plan-upload"]
    if file is None:
        return
    try:
        plan = RankPlan.from_json(file.getvalue(), file.name)
        plan.check(checkpoint)
        _open(dataclasses.replace(plan, model=checkpoint.name))
    except WorkbenchError as error:
        st.session_state["plan-said"] = str(error)
