"""The ranks of a plan, to be changed on a map or in a table, with budget, energy and bytes in view and a way back."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analyzers.plans import RankPlan
from analyzers.spectra import Spectra
from app import charts, components, state
from app.forms import bound
from app.panels import rank_edits
from app.text import markdown
from app.units import bytes_text, percent_text
from loraxs_core.checkpoint import Checkpoint

CELLS = "rank-cells"  # names of the squares that are chosen
KEEP_TYPED = f"<script>{(Path(__file__).parents[1] / 'assets' / 'cells.js').read_text(encoding='utf-8')}</script>"


def show(checkpoint: Checkpoint, made: RankPlan, spectra: Spectra | None) -> tuple[RankPlan, DeltaGenerator]:
    """Draws the editor; the plan with the changes in it, and the place of `totals`, which is in view while one edits."""
    st.subheader("Ranks, layer by layer", anchor=False)
    edits = rank_edits.of(made)
    with st.container(horizontal=True, vertical_alignment="center", key="rank-totals"):
        place = st.empty()
        back, on = edits.at > 0, edits.at < len(edits.steps) - 1
        st.button("Undo", icon=":material/undo:", key="undo", disabled=not back, on_click=edits.go, args=(-1,))
        st.button("Redo", icon=":material/redo:", key="redo", disabled=not on, on_click=edits.go, args=(1,))
    plan = made
    with components.errors():
        plan = made.with_ranks(edits.now) if edits.now else made
    table, on_map = st.tabs(["In the table", "On the map"], **bound("rank-tab"), on_change="rerun")
    if table.open:
        with table, components.errors():
            plan = _table(checkpoint, made, plan, spectra, edits)
    if on_map.open:
        with on_map, components.errors():
            _map(checkpoint, made, plan, spectra, edits)
    return plan, place


def totals(place: DeltaGenerator, plan: RankPlan, made: RankPlan, frame: pd.DataFrame, file_bytes: int) -> None:
    """The line above the editor. frame: of the plan as it is now."""
    share = plan.trainable / plan.budget
    parts = [f"**{plan.trainable:,}** of {plan.budget:,} numbers ({percent_text(share)})"]
    if not plan.within_budget:
        parts[0] = f":red[{parts[0]}, {plan.trainable - plan.budget:,} too many]"
    if "energy_at_rank" in frame:
        parts.append(f"energy kept **{percent_text(frame['energy_at_rank'].mean())}**")
    parts.append(f"file **{bytes_text(file_bytes)}**")
    changed = sum(rank != made.ranks[name] for name, rank in plan.ranks.items())
    parts.append(f"{changed} changed" if changed else "none changed")
    place.markdown("  ·  ".join(parts))


def _table(
    checkpoint: Checkpoint, made: RankPlan, plan: RankPlan, spectra: Spectra | None, edits: rank_edits.Edits
) -> RankPlan:
    """What was typed goes into `edits`; the ranks that the table is made of stay what they were when it began, all else follows."""
    frame = plan.frame(checkpoint, spectra).assign(role=lambda table: table["role"].map(charts.role_label))
    begun = {**made.ranks, **edits.base}
    edited = st.data_editor(
        frame.assign(rank=frame["name"].map(begun)),
        key=f"edit-{state.identity(made)}-{edits.version}",
        hide_index=True,
        height=360,
        disabled=[column for column in frame if column != "rank"],
        column_order=["rank", "name", "role", "shape", "trainable", "energy_at_rank"],
        column_config={
            "rank": st.column_config.NumberColumn(
                "rank", min_value=1, max_value=int(frame[["out", "in"]].min(axis=1).max()), step=1, required=True, width=70
            ),
            "name": st.column_config.TextColumn(width=270),
            "role": st.column_config.TextColumn(width=170),
            "trainable": st.column_config.NumberColumn("r²", format="localized", width=80),
            "energy_at_rank": st.column_config.ProgressColumn(
                "energy at this rank", format="percent", min_value=0, max_value=1
            ),
        },
    )
    typed = dict(zip(edited["name"], edited["rank"].astype(int), strict=True))
    st.html(KEEP_TYPED, unsafe_allow_javascript=True)
    changed = {name: int(rank) for name, rank in typed.items() if rank != made.ranks[name]}
    if changed != edits.now:
        made.with_ranks(changed)  # raises for a rank that the layer does not have, before it is kept
        edits.put(changed)
        st.rerun()  # so that what stands beside a rank is about that rank
    return plan


def _map(checkpoint: Checkpoint, made: RankPlan, plan: RankPlan, spectra: Spectra | None, edits: rank_edits.Edits) -> None:
    """Squares are chosen by clicking or with a box; the rank below goes to all of them."""
    frame = plan.frame(checkpoint, spectra)
    cells = [name for name in st.session_state.get(CELLS, []) if name in plan.ranks]
    figure = partial(charts.layer_map, frame, "rank", label="rank r (directions)", selected=cells)
    event = components.chart(
        figure, "rank-map", label="Rank of every layer", on_select="rerun", selection_mode=("points", "box")
    )
    clicked = [point["customdata"][0] for point in components.points(event)]
    if clicked and clicked != st.session_state.get("rank-clicked"):
        toggled = [name for name in cells if name not in clicked] + [name for name in clicked if name not in cells]
        st.session_state[CELLS], st.session_state["rank-clicked"] = toggled, clicked
        st.rerun()
    st.session_state["rank-clicked"] = clicked
    if not cells:
        st.caption("Click a square to choose it, or draw a box around several; then give them a rank.")
        return
    ranks = [plan.ranks[name] for name in cells]
    with st.form("rank-form", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        largest = min(weight.full_rank for weight in checkpoint.linear if weight.name in cells)
        value = st.number_input(f"Rank of {len(cells)} chosen", 1, largest, min(max(ranks), largest), width=180)
        if st.form_submit_button("Set", type="primary", key="set-cells"):
            changed = {**edits.now, **dict.fromkeys(cells, int(value))}
            edits.put({name: rank for name, rank in changed.items() if rank != made.ranks[name]})
            edits.restart()
            st.rerun()
        if st.form_submit_button("Choose none", key="no-cells"):
            st.session_state[CELLS] = []
            st.rerun()
    st.caption(markdown(", ".join(cells[:6])) + (f" and {len(cells) - 6} more" if len(cells) > 6 else ""))
