"""A plan beside another one: uniform ranks at the same budget, or a plan that was kept, as a map of the differences."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from analyzers.plans import RankPlan
from app import charts, components, state
from app.forms import folded
from app.panels.plan_inputs import line
from loraxs_core.checkpoint import Checkpoint

UNIFORM = "uniform ranks at the same budget"
VIEWS = {"difference": "the difference", "both": "both plans"}


def show(checkpoint: Checkpoint, plan: RankPlan, uniform: RankPlan | None) -> None:
    """uniform: the baseline; None where the plan is it."""
    others = {name: kept for name, kept in state.kept_plans().items() if set(kept.ranks) == set(plan.ranks)}
    others.pop(state.identity(plan), None)
    choices = [*([UNIFORM] if uniform is not None else []), *others]
    if not choices:
        return
    # Two figures and a table, drawn when one looks at them, or has chosen what to look at.
    place = folded(
        "Beside another plan", ":material/compare_arrows:", {"compared-plan": choices[0], "plans-view": "difference"}
    )
    if place is None:
        return
    with place:
        chosen = st.selectbox(
            "Compared with",
            choices,
            format_func=lambda name: line(name, others[name]) if name in others else name,
            key="compared-plan",
        )
        other = others.get(chosen) or uniform
        assert other is not None
        frame = plan.frame(checkpoint)
        both = pd.concat([frame.assign(plan="this plan"), other.frame(checkpoint).assign(plan="the other")], ignore_index=True)
        view = st.segmented_control(
            "Map of", list(VIEWS), default="difference", required=True, format_func=VIEWS.get, key="plans-view"
        )
        if view == "both":
            components.chart(partial(charts.ranks_side_by_side, both), "both", label="Ranks of both plans, layer by module")
        else:
            difference = frame.assign(difference=frame["rank"] - frame["name"].map(other.ranks))
            components.chart(partial(charts.rank_difference, difference), "difference", label="Difference of the ranks")
        components.chart(partial(charts.rank_comparison, both), "by-role", label="Mean rank by role under both")
        changes = plan.diff(other)
        st.caption(f"{len(changes)} of {len(plan.ranks)} layers have another rank there.")
        components.table(changes, "difference.csv", key="diff", height=240)
