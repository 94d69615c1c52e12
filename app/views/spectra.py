"""Spectra: scan the model, see every layer at once, and any of them closely."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from analyzers.spectra import METRICS
from analyzers.spectra.metrics.noise import marchenko_pastur_density
from app import charts, components, jobs, state
from app.units import percent_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WeightsMissing
from loraxs_core.roles import LABELS, layer_of, short_name
from sample_models import CATALOGUE

if TYPE_CHECKING:
    from analyzers.spectra import Spectra

FIRST = ("rank_90", "stable_rank", "effective_rank", "sigma_max", "rank_50", "rank_95", "rank_99")
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
    known = set(frame["name"])
    if "layers" not in st.session_state or not known.issuperset(st.session_state["layers"]):
        st.session_state["layers"] = _telling(frame)
    left, right = st.columns([1.7, 1], gap="large")
    with left:
        _map(frame, planned=bool(ranks))
    with right:
        _words(frame, ranks)
    _close_up(checkpoint, spectra, frame, ranks)
    with st.expander("By depth, one line a role", icon=":material/show_chart:"):
        metric = st.selectbox(
            "Metric", _metrics(bool(ranks)), format_func=charts.metric_label, key="depth-metric", persist_state="session"
        )
        components.chart(charts.metric_by_layer(frame, metric, dark=state.dark()), "depth")
    _table(frame, planned=bool(ranks))
    name = state.model_name()
    components.reproduce(
        f"loraxs scan {name} --out layers.csv",
        "from analyzers.spectra import scan\nfrom sample_models import open_model\n\n"
        f"spectra = scan(open_model({name!r}))\nprint(spectra.frame())",
    )
    st.page_link(components.page_of("plan"), label="Next: plan ranks", icon=":material/arrow_forward:")


def _table(frame: pd.DataFrame, *, planned: bool) -> None:
    st.subheader("All layers", anchor=False)
    shown = frame.assign(role=frame["role"].map(LABELS))
    columns = {
        name: st.column_config.NumberColumn(
            metric.label,
            help=f"{metric.meaning} Unit: {metric.unit or 'none'}. Source: {metric.source}",
            format="%d" if metric.whole else "%.4g",
        )
        for name, metric in METRICS.items()
    }
    columns["energy_at_rank"] = st.column_config.ProgressColumn(
        "energy at planned rank", format="percent", min_value=0, max_value=1
    )
    order = [
        "name",
        "role",
        "shape",
        *(["rank", "energy_at_rank"] if planned else []),
        *FIRST,
        *(name for name in METRICS if name not in FIRST),
    ]
    components.table(
        shown, f"{frame.attrs.get('model', 'layers')}.csv", key="layers-table", column_order=order, columns=columns, height=380
    )


def _metrics(planned: bool) -> list[str]:
    """The metrics to choose from, those one asks for most first."""
    return [*FIRST, *(["energy_at_rank"] if planned else []), *(name for name in METRICS if name not in FIRST)]


def _map(frame: pd.DataFrame, *, planned: bool) -> None:
    st.subheader("Layer × module map", anchor=False)
    metric = st.selectbox(
        "Colour shows", _metrics(planned), format_func=charts.metric_label, key="map-metric", persist_state="session"
    )
    chosen = st.session_state["layers"]
    figure = charts.layer_map(frame, metric, selected=chosen, dark=state.dark())
    event = components.chart(figure, "map", on_select="rerun", selection_mode="points")
    clicked = [point["customdata"][0] for point in event["selection"]["points"]] if event else []
    if clicked and clicked != st.session_state.get("clicked"):
        # The frames change the figure, so the selection is empty in the next run. The list below is made later in this run.
        toggled = [name for name in chosen if name not in clicked] + [name for name in clicked if name not in chosen]
        st.session_state["layers"] = toggled[-AT_MOST:]
        st.session_state["clicked"] = clicked
        st.rerun()
    st.session_state["clicked"] = clicked
    about = (
        METRICS[metric].meaning if metric in METRICS else "What the plan's rank keeps of the layer's squared Frobenius norm."
    )
    st.caption(f"{about} Click a square to add its spectrum below, click it again to take it away.")


def _close_up(checkpoint: Checkpoint, spectra: Spectra, frame: pd.DataFrame, ranks: dict[str, int]) -> None:
    st.subheader("Spectrum", anchor=False)
    names = frame["name"].tolist()
    left, right = st.columns([3, 1])
    chosen = left.multiselect(
        "Layers", names, max_selections=AT_MOST, key="layers", persist_state="session", placeholder="Choose layers"
    )
    other = right.selectbox(
        "Overlay a second model",
        [entry.name for entry in CATALOGUE.values() if entry.has_weights and entry.name != checkpoint.name],
        index=None,
        placeholder="none",
        accept_new_options=True,
        key="overlay",
        persist_state="session",
        help="A catalogue name, folder or hub id that was scanned on this machine; layers of the same name are drawn dashed.",
    )
    if not chosen:
        st.info("Choose at least one layer, or click a square of the map.", icon=":material/touch_app:")
        return
    short = {name: _short(name) for name in chosen}
    values = {short[name]: spectra.layers[name].singular_values for name in chosen}
    planned = {short[name]: ranks[name] for name in chosen if name in ranks}
    spectrum, cumulative, density = st.tabs(["Singular values", "Cumulative energy", "Density and noise"])
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
    with density:
        name = st.selectbox("Layer", chosen, key="density-layer")
        noise = marchenko_pastur_density(spectra.layers[name])
        components.chart(
            charts.density(
                spectra.layers[name].singular_values, noise, label=_short(name), rank=ranks.get(name), dark=state.dark()
            ),
            "density",
        )
        spikes = spectra.layers[name].metrics["mp_spikes"]
        st.caption(
            f"{spikes:.0f} directions lie above the edge of the noise, where a matrix of independent random numbers of the same median strength has none."
        )
    longest = max(map(len, values.values()))
    wide = pd.DataFrame({"index": range(1, longest + 1)} | {label: pd.Series(sigma) for label, sigma in values.items()})
    components.download_csv(wide, "singular-values.csv", key="sigma-csv", label="These singular values (CSV)")


def _telling(frame: pd.DataFrame) -> list[str]:
    """The layers to begin with: the one whose energy is most concentrated and the one where it is least."""
    share = frame["rank_90"] / frame[["out", "in"]].min(axis=1)
    return list(dict.fromkeys([frame.loc[share.idxmin(), "name"], frame.loc[share.idxmax(), "name"]]))


def _overlay(other: str | None, short: dict[str, str]) -> dict | None:
    """Label -> singular values in the second model, for the layers it has; says in a box why there are none."""
    if not other:
        return None
    with components.errors():
        spectra = state.spectra(state.open_local(other))
        if spectra is None:
            raise WeightsMissing(f"{other} has no spectra yet; choose it on the Model page and scan it, then overlay it here.")
        found = {label: spectra.layers[name].singular_values for name, label in short.items() if name in spectra.layers}
        if not found:
            raise WeightsMissing(f"{other} has no layers of these names, so there is nothing to overlay.")
        return found
    return None


def _short(name: str) -> str:
    """``layer 3 output.dense``: what fits a legend."""
    layer = layer_of(name)
    return short_name(name) if layer is None else f"layer {layer} {short_name(name)}"


def _words(frame: pd.DataFrame, ranks: dict[str, int]) -> None:
    """The most and the least concentrated layers, in sentences; with a plan, those it keeps most and least of."""
    st.subheader("What stands out", anchor=False)
    full = frame[["out", "in"]].min(axis=1)
    order = (frame["rank_90"] / full).sort_values().index
    for title, picked in (("Most concentrated", order[:3]), ("Most spread out", order[:-4:-1])):
        st.markdown(f"**{title}**")
        lines = []
        for index in picked:
            row = frame.loc[index]
            kept = f" Rank {ranks[row['name']]} keeps {percent_text(row['energy_at_rank'])}." if row["name"] in ranks else ""
            lines.append(
                f"- {_short(row['name'])} keeps 90 % of its energy in {row['rank_90']:.0f} of {full[index]} directions, "
                f"half of it in {row['rank_50']:.0f}.{kept}"
            )
        st.markdown("\n".join(lines))
    st.caption(
        f"{len(frame)} linear weights, all singular values of each; energy is σ². "
        + ("" if ranks else "No plan yet, so no planned ranks are marked.")
    )
