"""Spectra: scan the model, see every layer at once, and any of them closely."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from app import charts, components, jobs, state
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WorkbenchError
from loraxs_core.progress import seconds
from loraxs_core.roles import LABELS

if TYPE_CHECKING:
    from analyzers.spectra import Spectra

METRICS = ("rank_90", "stable_rank", "effective_rank", "rank_50", "rank_95", "rank_99", "sigma_max", "energy_at_rank")
AT_MOST = 8  # spectra in one figure: as many as there are colours that can be told apart


def show() -> None:
    """The page."""
    components.heading(
        "Spectra", "How the energy of each weight is spread over its singular directions: what a rank can and cannot hold."
    )
    checkpoint = state.checkpoint()
    if not checkpoint.has_weights:
        components.needs(
            f"{checkpoint.name} is an architecture without weights, so it has no spectrum. Choose a model with weights to scan it; "
            "plans, sizes and memory work without.",
            "model",
            "Choose another model",
        )
        return
    spectra = state.spectra(checkpoint)
    if spectra is None:
        _scan(checkpoint)
        return
    _results(checkpoint, spectra)


def _scan(checkpoint: Checkpoint) -> None:
    """Starts the scan, and follows it: it is a process of its own and goes on when the page is closed."""
    key = checkpoint.fingerprint
    running = jobs.status("scan", key)
    if running and running.is_running:
        components.watch("scan", key, f"Scanning {checkpoint.name}")
        st.caption("The scan goes on when you leave this page or close it, and is found again here.")
        return
    components.ended("scan", key, "scan")
    count, numbers = len(checkpoint.linear), sum(weight.parameters for weight in checkpoint.linear)
    st.info(
        f"{checkpoint.name} has not been scanned yet: {count} linear weights, {numbers:,} numbers. "
        "The scan computes all singular values of each, one tensor at a time, and keeps them, so that the next time is instant.",
        icon=":material/lightbulb:",
    )
    if st.button("Scan", type="primary", icon=":material/play_arrow:", key="scan"):
        jobs.start("scan", state.model_name(), key)
        st.rerun()


@st.cache_data(max_entries=32, show_spinner=False)
def _frame(fingerprint: str, plan_file: str | None, _spectra: Spectra, _plan: object) -> pd.DataFrame:
    return _spectra.frame(_plan)


def _results(checkpoint: Checkpoint, spectra: Spectra) -> None:
    plan = state.plan()
    frame = _frame(checkpoint.fingerprint, str(state.plan_file()), spectra, plan)
    ranks = dict(plan.ranks) if plan else {}
    st.caption(
        f"{len(frame)} linear weights, all singular values, computed in {seconds(spectra.seconds)} and kept in the cache. "
        + (f"Planned ranks: the {plan.strategy} plan." if plan else "No plan yet: planned ranks are not marked.")
    )
    _map(frame, planned=bool(ranks))
    _close_up(checkpoint, spectra, frame, ranks)
    _words(frame)
    with st.expander("By depth, one line a role", icon=":material/show_chart:"):
        metric = st.selectbox(
            "Metric", _metrics(bool(ranks)), format_func=charts.metric_label, key="depth-metric", persist_state="session"
        )
        components.chart(charts.metric_by_layer(frame, metric, dark=state.dark()), "depth")
    st.subheader("All layers", anchor=False)
    table = frame.assign(role=frame["role"].map(LABELS))
    shown = [column for column in ("name", "role", "shape", *_metrics(bool(ranks))) if column in table]
    components.table(
        table,
        f"{checkpoint.fingerprint[:8]}-layers.csv",
        key="layers-table",
        column_order=shown,
        columns={
            "stable_rank": st.column_config.NumberColumn("stable rank", format="%.1f"),
            "effective_rank": st.column_config.NumberColumn("effective rank", format="%.1f"),
            "sigma_max": st.column_config.NumberColumn("σ₁", format="%.3f"),
            "energy_at_rank": st.column_config.ProgressColumn(
                "energy at planned rank", format="percent", min_value=0, max_value=1
            ),
            **{
                f"rank_{level}": st.column_config.NumberColumn(
                    f"{level} % energy", help=f"Directions that hold {level} % of Σσ²"
                )
                for level in (50, 90, 95, 99)
            },
        },
    )
    name = state.model_name()
    components.reproduce(
        f"loraxs scan {name} --out layers.csv",
        "from analyzers.spectra import scan\nfrom sample_models import open_model\n\n"
        f"spectra = scan(open_model({name!r}))\nprint(spectra.frame())",
    )
    st.page_link(components.page_of("plan"), label="Next: plan ranks", icon=":material/arrow_forward:")


def _metrics(planned: bool) -> list[str]:
    return [metric for metric in METRICS if planned or metric != "energy_at_rank"]


def _map(frame: pd.DataFrame, *, planned: bool) -> None:
    st.subheader("Layer × module map", anchor=False)
    metric = st.selectbox(
        "Colour shows", _metrics(planned), format_func=charts.metric_label, key="map-metric", persist_state="session"
    )
    chosen = [name for name in st.session_state.get("layers", []) if name in set(frame["name"])]
    figure = charts.layer_map(frame, metric, selected=chosen, dark=state.dark())
    event = components.chart(figure, "map", on_select="rerun", selection_mode="points")
    clicked = [point["customdata"][0] for point in event.selection.points] if event else []
    if clicked and clicked != st.session_state.get("clicked"):
        # The widget below has not been made yet in this run, so its value may still be set.
        st.session_state["clicked"] = clicked
        st.session_state["layers"] = (
            list(dict.fromkeys([*clicked, *chosen]))[:AT_MOST] if len(clicked) == 1 else clicked[:AT_MOST]
        )
        st.rerun()
    st.caption("Click a square to see its spectrum below; shift-click adds more.")


def _close_up(checkpoint: Checkpoint, spectra: Spectra, frame: pd.DataFrame, ranks: dict[str, int]) -> None:
    st.subheader("Spectrum", anchor=False)
    names = frame["name"].tolist()
    if "layers" not in st.session_state:
        st.session_state["layers"] = _telling(frame)
    left, right = st.columns([3, 1])
    chosen = left.multiselect(
        "Layers", names, max_selections=AT_MOST, key="layers", persist_state="session", placeholder="Choose layers"
    )
    other = right.selectbox(
        "Overlay a second model", _others(checkpoint), index=None, placeholder="none", key="overlay", persist_state="session",
        help="Scanned models of this machine; layers of the same name are drawn dashed.",
    )  # fmt: skip
    if not chosen:
        st.info("Choose at least one layer, or click a square of the map.", icon=":material/touch_app:")
        return
    short = {name: _short(name) for name in chosen}
    values = {short[name]: spectra.layers[name].singular_values for name in chosen}
    planned = {short[name]: ranks[name] for name in chosen if name in ranks}
    spectrum, cumulative = st.tabs(["Singular values", "Cumulative energy"])
    with spectrum:
        relative, linear = st.columns(2)
        figure = charts.spectrum(
            values,
            planned,
            overlay=_overlay(other, short),
            overlay_label=other or "",
            relative=relative.toggle("Divide by σ₁", key="relative", persist_state="session"),
            log_index=not linear.toggle("Linear index axis", key="linear", persist_state="session"),
            dark=state.dark(),
        )
        components.chart(figure, "spectrum")
    with cumulative:
        components.chart(charts.cumulative_energy(values, planned, dark=state.dark()), "cumulative")
    longest = max(map(len, values.values()))
    wide = pd.DataFrame({"index": range(1, longest + 1)} | {label: pd.Series(sigma) for label, sigma in values.items()})
    components.download_csv(wide, "singular-values.csv", key="sigma-csv", label="These singular values (CSV)")


def _telling(frame: pd.DataFrame) -> list[str]:
    """The layers to begin with: the one whose energy is most concentrated and the one where it is least."""
    share = frame["rank_90"] / frame[["out", "in"]].min(axis=1)
    return list(dict.fromkeys([frame.loc[share.idxmin(), "name"], frame.loc[share.idxmax(), "name"]]))


def _others(checkpoint: Checkpoint) -> list[str]:
    """Catalogue models with weights that were scanned on this machine, and are not this one."""
    from sample_models import CATALOGUE

    found = []
    for entry in CATALOGUE.values():
        if entry.has_weights and entry.name != checkpoint.name:
            try:
                if state.spectra(state.open_local(entry.name)) is not None:
                    found.append(entry.name)
            except WorkbenchError:
                continue  # not downloaded
    return found


def _overlay(other: str | None, short: dict[str, str]) -> dict | None:
    if not other:
        return None
    spectra = state.spectra(state.open_local(other))
    return (
        {label: spectra.layers[name].singular_values for name, label in short.items() if name in spectra.layers}
        if spectra
        else None
    )


def _short(name: str) -> str:
    """``layer 3 output.dense``: what fits a legend."""
    from loraxs_core.roles import layer_of, short_name

    layer = layer_of(name)
    return short_name(name) if layer is None else f"layer {layer} {short_name(name)}"


def _words(frame: pd.DataFrame) -> None:
    """The most and the least concentrated layers, in sentences."""
    full = frame[["out", "in"]].min(axis=1)
    order = (frame["rank_90"] / full).sort_values().index
    st.markdown("**What stands out**")
    for index, verdict in [*((at, "concentrated") for at in order[:3]), *((at, "spread out") for at in order[:-4:-1])]:
        row = frame.loc[index]
        st.markdown(
            f"- {verdict}: **{_short(row['name'])}** keeps 90 % of its energy in {int(row['rank_90'])} of {full[index]} directions, "
            f"half of it in {int(row['rank_50'])}."
        )
