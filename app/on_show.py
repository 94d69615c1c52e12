"""What the Cost page last showed in this session, for the report that can be taken along from any page.

The inputs of a page are gone from the session while another page is open, so what was made of them is kept. Of the plan only whether it
was followed: the report is about the plan in use when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st

from analyzers.memory import MemorySettings
from app import state
from app.reproduce import adapters

if TYPE_CHECKING:
    from analyzers.memory.gpus import Gpu
    from analyzers.plans import RankPlan
    from analyzers.storage import Scenario
    from loraxs_core.checkpoint import Checkpoint

_FLEET, _TRAINING = "on-show-fleet", "on-show-training"


def fleet(scenario: Scenario) -> None:
    """Keeps what the storage tab shows."""
    st.session_state[_FLEET] = (scenario, scenario.plan is not None or state.plan() is None)


def training(checkpoint: Checkpoint, asked: Mapping[str, dict[str, Any]], step: dict[str, Any], card: Gpu | None) -> None:
    """Keeps what the memory tab shows. asked: method -> its rank or plan; step: what all have alike."""
    follows = "plan" in asked.get("lora-xs", {}) or state.plan() is None
    st.session_state[_TRAINING] = (checkpoint.fingerprint, dict(asked), step, card, follows)


def last_fleet(checkpoint: Checkpoint, plan: RankPlan | None) -> Scenario | None:
    """As it would be shown with `plan`; None where it was of another model, or there is none."""
    scenario, follows = st.session_state.get(_FLEET, (None, False))
    if scenario is None or scenario.model != state.model_name():
        return None
    chosen = plan if follows else None
    layers = adapters.targets(checkpoint, plan).get("targets")
    ranks = {name: rank for name, rank in (scenario.ranks or {}).items() if not (chosen and name == "lora-xs")}
    return scenario.but(plan=chosen.to_dict() if chosen else None, ranks=ranks, targets=",".join(layers) if layers else "paper")


def last_training(checkpoint: Checkpoint, plan: RankPlan | None) -> dict[str, MemorySettings] | None:
    """Method -> its training step, likewise."""
    fingerprint, asked, step, _, follows = st.session_state.get(_TRAINING, ("", {}, {}, None, False))
    if fingerprint != checkpoint.fingerprint or not asked:
        return None
    targets, found = adapters.targets(checkpoint, plan), {}
    for method, with_what in asked.items():
        if method == "lora-xs" and plan is not None and follows:
            found[method] = MemorySettings(method=method, plan=plan, **step)
        else:
            rank = {name: value for name, value in with_what.items() if name != "plan"}
            found[method] = MemorySettings(method=method, **{**step, **rank, **targets})
    return found


def last_card() -> Gpu | None:
    """The card that the memory tab last compared with."""
    return st.session_state[_TRAINING][3] if _TRAINING in st.session_state else None
