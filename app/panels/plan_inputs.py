"""What a plan is asked to be, as inputs of the Plan page; and the plans that were used before, to take up again."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from analyzers.plans import PlanSettings, RankPlan
from analyzers.ranks import STRATEGIES
from app import state
from app.forms import bound, folded, limited, value
from app.options.plan import DEFAULTS, Asked, names, pins
from app.panels import plan_budget, task_signals
from app.text import markdown
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WorkbenchError

IN_USE = "in-use"
TARGETS = {"paper": "as in the LoRA-XS paper", "all-linear": "every attention and MLP layer"}
SAME = {"": "each layer its own", "role": "one in all layers of a role", "block": "one in all modules of a block"}
# What the inputs that few need hold when nothing was typed, and what each sets in `PlanSettings`.
FURTHER: dict[str, Any] = {
    "pins": "",
    "exclude": "",
    "multiple-of": DEFAULTS.multiple_of,
    "same": "",
    "may-leave-out": False,
    "scaling": DEFAULTS.alpha_over_r,
}
FURTHER_KEYS = {
    "pins": "pins",
    "exclude": "exclude",
    "multiple-of": "multiple_of",
    "same": "same",
    "may-leave-out": "may_leave_out",
    "scaling": "alpha_over_r",
}


def show(checkpoint: Checkpoint) -> Asked:
    """What is asked for. Raises WorkbenchError for what no plan can meet; what is typed stays."""
    in_use = state.plan()
    offered = [*([IN_USE] if in_use else []), *STRATEGIES]
    labels = {IN_USE: "The plan in use", **{name: entry.label for name, entry in STRATEGIES.items()}}
    if st.session_state.get("strategy") not in offered:
        st.session_state.pop("strategy", None)  # of another model, or of a plan that is gone
    strategy = st.selectbox("Strategy", offered, **bound("strategy", labels.get))
    if strategy == IN_USE and in_use is not None:
        st.caption(
            f"Strategy: {markdown(in_use.strategy)}. Budget: {markdown(in_use.requested)}. Choose a strategy above to make another plan."
        )
        return Asked(None)
    st.caption(STRATEGIES[strategy].summary)
    budget, fits = plan_budget.show(checkpoint)
    targets = st.selectbox(
        "Target modules",
        list(TARGETS),
        accept_new_options=True,
        **bound("targets", lambda name: f"{name}: {TARGETS[name]}" if name in TARGETS else name),
        help="Or type module suffixes or roles, separated by commas: q_proj, v_proj or mlp.down",
    )
    limits = _limits(checkpoint)
    settings = PlanSettings(strategy=strategy, budget=budget, targets=targets or DEFAULTS.targets, **_read(limits))
    return Asked(settings, fits, task_signals.show(checkpoint, settings))


def _limits(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of `PlanSettings` that bound ranks, as they were typed."""
    low, high = st.columns(2)
    largest = max(weight.full_rank for weight in checkpoint.linear)
    typed: dict[str, Any] = {
        "min_rank": low.number_input("Smallest rank", 1, largest, DEFAULTS.min_rank, **limited("min-rank", 1, largest)),
        "max_rank": high.number_input(
            "Largest rank", 1, largest, None, placeholder="no limit", **limited("max-rank", 1, largest)
        ),
    }
    if place := folded("Pins, exclusions and more", ":material/push_pin:", FURTHER):
        with place:
            _further()
    return typed | {name: value(key, FURTHER[key]) for key, name in FURTHER_KEYS.items()}


def _further() -> None:
    """The inputs inside the expander."""
    st.text_input(
        "Pinned ranks", placeholder="mlp.down=8, layer.0.attention.self.query=4", **bound("pins"),
        help="Module, suffix or role = rank, whatever the strategy says; of several that match, the last.",
    )  # fmt: skip
    st.text_input("Left out", placeholder="attention.key, lm_head", **bound("exclude"))
    st.number_input("Ranks are multiples of", 1, 256, FURTHER["multiple-of"], **bound("multiple-of"))
    st.selectbox("One rank for", list(SAME), **bound("same", SAME.get))
    st.toggle("A layer may get no adapter at all", **bound("may-leave-out"))
    st.number_input(
        "Scaling α/r, the same in every layer", 0.0, 64.0, FURTHER["scaling"], step=0.5, **bound("scaling"),
        help="Held constant, so that the learning rate means the same in layers of different rank.",
    )  # fmt: skip


def _read(typed: dict[str, Any]) -> dict[str, Any]:
    """`_limits` as `PlanSettings` takes them. Raises SettingsError for a pin that is none."""
    return typed | {"pins": pins(typed["pins"]), "exclude": names(typed["exclude"])}


def kept_plans(checkpoint: Checkpoint) -> None:
    """The plans used before on this model, and one from a file, to take up again."""
    kept = state.kept_plans()
    with st.expander(f"Plans kept: {len(kept)}" if kept else "Open a plan", icon=":material/history:"):
        if said := st.session_state.pop("plan-said", None):
            st.error(markdown(said), icon=":material/error:")
        if (in_use := state.plan()) is not None:
            name = state.identity(in_use)
            st.text_input(
                "Name of the plan in use", state.plan_names().get(name, ""), max_chars=60, placeholder="none yet",
                key=f"name-{name}", on_change=_name, args=(name,),
            )  # fmt: skip
        chosen = st.selectbox(
            "Used before on this model, the newest first", list(kept), index=None, format_func=lambda name: line(name, kept[name]),
            placeholder="choose one" if kept else "none yet: “Use this plan” keeps one", key="kept-plan",
        )  # fmt: skip
        st.button("Open it", key="open-plan", disabled=chosen is None, on_click=_open, args=(kept.get(chosen),))
        st.file_uploader(
            "Or a plan.json", type=["json", "yaml", "yml", "txt"], key="plan-upload", on_change=_upload, args=(checkpoint,)
        )


def line(name: str, plan: RankPlan) -> str:
    """A plan in a list."""
    low, high = min(plan.ranks.values()), max(plan.ranks.values())
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    named = state.plan_names().get(name)
    return f"{named + '  ·  ' if named else ''}{plan.strategy}  ·  {ranks} in {len(plan.ranks)} layers  ·  {plan.trainable:,} numbers  ·  {name}"


def _open(plan: RankPlan) -> None:
    state.choose_plan(plan)
    st.session_state["strategy"] = IN_USE
    st.session_state["kept-plan"] = None


def _name(name: str) -> None:
    state.name_plan(name, st.session_state[f"name-{name}"].strip())


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
