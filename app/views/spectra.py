"""Spectra: scan the model, see every layer at once, and any of them closely."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from analyzers.spectra import METRICS
from analyzers.spectra.outliers import by_concentration, unlike_peers
from app import answers, charts, components, jobs, state
from app.forms import bound
from app.panels import layer_spectra
from app.text import markdown
from app.units import percent_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.roles import LABELS

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from analyzers.spectra import Spectra

FIRST = ("rank_90", "stable_rank", "effective_rank", "sigma_max", "rank_50", "rank_95", "rank_99")


@dataclass(frozen=True)
class Subject:
    """What the page looks at. checkpoint: the model, or its difference to the base `minus`. parts: of fused projections too."""

    checkpoint: Checkpoint
    minus: str | None
    parts: bool

    @property
    def key(self) -> str:
        """Names the subject's scan."""
        return f"{self.checkpoint.fingerprint}{' in parts' if self.parts else ''}"


def show() -> None:
    """The page."""
    answer = components.heading(
        "Spectra", "How the energy of each weight is spread over its singular directions: what a rank can and cannot hold."
    )
    own = state.checkpoint()
    if not own.has_weights:
        fetchable = bool(own.note)  # of the hub's models; the catalogue's architectures have no weights anywhere
        what = own.note.rstrip(".") or f"{own.name} is an architecture without weights"
        components.needs(
            f"{what}, so it has no spectrum. {'Fetch its weights, or choose' if fetchable else 'Choose'} a model that has some; "
            "plans, sizes and memory work without.",
            "model",
            "To the Model page",
        )
        return
    subject = _subject(own)
    # Asked before the spectra are looked for: a scan that ends in between would be neither going on nor found.
    last = jobs.status("scan", subject.key)
    spectra = state.spectra(subject.checkpoint, parts=subject.parts)
    if spectra is None:
        going_on = last is not None and last.is_running
        components.answer(answer, "The scan is going on" if going_on else "Not scanned yet: no singular value is known")
        _scan(subject, going_on=going_on)
        return
    _results(subject, spectra, answer)


def _subject(own: Checkpoint) -> Subject:
    """The choice between the weights themselves and their difference to a base, and of fused projections in parts."""
    left, right = st.columns([2, 1], vertical_alignment="bottom")
    now, base = state.minus(), None
    options = state.other_models()
    options += [now] if now and now not in options else []
    base = left.selectbox(
        "Subtract a base, to see the update that a fine-tune made",
        options,
        index=options.index(now) if now else None,
        placeholder="nothing subtracted: the weights themselves",
        accept_new_options=True,
        key=f"minus-{own.name}",
        help="A catalogue name, a folder or a hub id on this machine; weights go together by name.",
    )
    parts = bool(_fused(own.fingerprint, own)) and right.toggle(
        "Fused projections in parts too",
        value=state.parts(),
        key=f"parts-{own.name}",
        help="Query, key and value (or gate and up) that are stored as one matrix, each on its own as well.",
    )
    if (base, parts) != (now, state.parts()):
        state.look_at(minus=base, parts=parts)
    if base:
        st.caption(
            f"Every figure below is about **{markdown(own.name)} minus {markdown(base)}**: the update, in the units of the weights."
        )
    return Subject(state.open_local(state.model_name(), base) if base else own, base, parts)


@st.cache_data(max_entries=32, show_spinner=False)
def _fused(fingerprint: str, _checkpoint: Checkpoint) -> int:
    """How many weights can be taken apart."""
    return sum(bool(_checkpoint.parts(weight)) for weight in _checkpoint.linear)


def _scan(subject: Subject, *, going_on: bool) -> None:
    """Starts the scan, and follows it: it is a process of its own and goes on when the page is closed."""
    checkpoint = subject.checkpoint
    if going_on:
        components.watch("scan", subject.key, f"Scanning {checkpoint.name}")
        st.caption("The scan goes on when you leave this page or close it, and is found again here.")
        return
    if components.ended("scan", subject.key, "scan"):
        st.caption("The layers that it had finished are kept: the next scan goes on from them.")
    count, numbers = len(checkpoint.linear), sum(weight.parameters for weight in checkpoint.linear)
    st.info(
        f"{markdown(checkpoint.name)} has not been scanned yet: {count} linear weights, {numbers:,} numbers. "
        "The scan computes all singular values of each, one tensor at a time, and keeps them, so that the next time is instant.",
        icon=":material/lightbulb:",
    )
    start, accuracy = st.columns([1, 4], vertical_alignment="center")
    fast = accuracy.toggle(
        "Fast: float32 arithmetic, values within 1e-4 of the largest of their layer instead of 1e-9",
        **bound("scan-fast"),
        help="Saves time on large matrices. Rounding a model to 16 bits moves its singular values as much.",
    )
    if start.button("Scan", type="primary", icon=":material/play_arrow:", key="scan", width="stretch"):
        jobs.start("scan", state.model_name(), subject.key, minus=subject.minus, parts=subject.parts, fast=fast)
        st.rerun()


@st.cache_data(max_entries=32, show_spinner=False)
def _frame(subject: str, plan_file: str | None, _spectra: Spectra, _plan: object) -> pd.DataFrame:
    return _spectra.frame(_plan)


def _results(subject: Subject, spectra: Spectra, answer: DeltaGenerator) -> None:
    _not_finite(spectra)
    if not spectra.layers:
        return
    plan = state.plan()
    frame = _frame(subject.key, str(state.plan_file()), spectra, plan)
    ranks = dict(plan.ranks) if plan else {}
    known = set(frame["name"])
    if "layers" not in st.session_state:
        st.session_state["layers"] = [name for name in st.query_params.get_all("layers") if name in known] or _telling(frame)
    elif not known.issuperset(st.session_state["layers"]):
        st.session_state["layers"] = _telling(frame)
    said = _said(subject.key, str(state.plan_file()), frame, ranks)
    components.answer(answer, said.answer)
    left, right = components.panes([1.7, 1], "map")
    with left:
        _map(frame, planned=bool(ranks))
    with right:
        _words(said, frame, ranks, spectra.error)
    layer_spectra.show(spectra, frame, ranks)
    depth = st.expander("By depth, one line a role", icon=":material/show_chart:", **bound("by-depth"), on_change="rerun")
    if depth.open:
        with depth:
            _by_depth(frame, planned=bool(ranks))
    _table(frame, planned=bool(ranks))
    components.reproduce(*_same(subject, fast=not spectra.exact))
    st.page_link(components.page_of("plan"), label="Next: plan ranks", icon=":material/arrow_forward:")


def _by_depth(frame: pd.DataFrame, *, planned: bool) -> None:
    metric = st.selectbox("Metric", _metrics(planned), **bound("depth-metric", charts.metric_label))
    components.chart(
        partial(charts.metric_by_layer, frame, metric),
        "depth",
        label=f"{charts.metric_label(metric)} by depth, a line a role",
    )


def _same(subject: Subject, *, fast: bool) -> tuple[str, str]:
    """The command and the Python code that give the table."""
    name, minus = state.model_name(), subject.minus
    flags = f" --minus {shlex.quote(minus)}" if minus else ""
    flags += (" --parts" if subject.parts else "") + (" --fast" if fast else "")
    plan = state.plan_file() if state.plan() else None
    flags += f" --plan {shlex.quote(str(plan))}" if plan else ""
    opened = f"open_model({name!r}{f', minus={minus!r}' if minus else ''})"
    asked = (", parts=True" if subject.parts else "") + (", fast=True" if fast else "")
    planned = f"RankPlan.load({str(plan)!r})" if plan else ""
    python = ("from analyzers.ranks import RankPlan\n" if plan else "") + "from analyzers.spectra import scan\n"
    python += f"from sample_models import open_model\n\nspectra = scan({opened}{asked})\nprint(spectra.frame({planned}))"
    return f"loraxs scan {shlex.quote(name)}{flags} --out layers.csv", python


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
    columns["role"] = st.column_config.TextColumn(width=170)
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
        shown,
        "layers.csv",
        key="layers-table",
        download=frame,  # the very file that the command below writes
        column_order=order,
        columns=columns,
        height=380 if len(shown) > 9 else "auto",
    )


def _metrics(planned: bool) -> list[str]:
    """The metrics to choose from, those one asks for most first."""
    return [*FIRST, *(["energy_at_rank"] if planned else []), *(name for name in METRICS if name not in FIRST)]


def _map(frame: pd.DataFrame, *, planned: bool) -> None:
    st.subheader("Layer × module map", anchor=False)
    what, second = st.columns([3, 2])
    metric = what.selectbox("Colour shows", _metrics(planned), **bound("map-metric", charts.metric_label))
    other = layer_spectra.second_model(
        second, "Beside a second model", "beside", help="Both on one scale; its rows stand below."
    )
    shown = frame
    if other:
        with components.errors():
            beside = layer_spectra.scanned(other, "show it here").frame()
            named = ((frame, state.model_name()), (beside, other))
            shown = pd.concat([one.assign(model=Path(name).name) for one, name in named], ignore_index=True)
    chosen = st.session_state["layers"]
    figure = partial(charts.layer_map, shown, metric, selected=chosen)
    event = components.chart(
        figure, "map", label=f"Layer by module map of {charts.metric_label(metric)}", on_select="rerun", selection_mode="points"
    )
    known = set(frame["name"])
    clicked = [point["customdata"][0] for point in components.points(event) if point["customdata"][0] in known]
    if clicked and clicked != st.session_state.get("clicked"):
        # The frames change the figure, so the selection is empty in the next run. The list below is made later in this run.
        toggled = [name for name in chosen if name not in clicked] + [name for name in clicked if name not in chosen]
        st.session_state["layers"] = toggled[-layer_spectra.AT_MOST :]
        st.session_state["clicked"] = clicked
        st.rerun()
    st.session_state["clicked"] = clicked
    about = (
        METRICS[metric].meaning if metric in METRICS else "What the plan's rank keeps of the layer's squared Frobenius norm."
    )
    st.caption(f"{about} Click a square to add its spectrum below, click it again to take it away.")


def _telling(frame: pd.DataFrame) -> list[str]:
    """The layers to begin with: the one whose energy is most concentrated and the one where it is least."""
    names = by_concentration(frame)["name"].tolist()
    return list(dict.fromkeys([names[0], names[-1]])) if names else frame["name"].tolist()[:1]


@dataclass(frozen=True)
class Said:
    """What the page says of all layers, as Markdown. answer: its first line; paragraphs: what stands out."""

    answer: str
    paragraphs: tuple[str, ...]


@st.cache_data(max_entries=32, show_spinner=False)
def _said(subject: str, plan_file: str | None, _frame: pd.DataFrame, _ranks: dict[str, int]) -> Said:
    """Worked out once: sorting and grouping the layers takes longer than all else that the page does on the way to its picture."""
    return Said(answers.spectra(_frame, planned=bool(_ranks)), tuple(_paragraphs(_frame, _ranks)))


def _paragraphs(frame: pd.DataFrame, ranks: dict[str, int]) -> Iterator[str]:
    """The most and the least concentrated layers and those unlike their peers, in sentences; with a plan, what it keeps."""
    ordered = by_concentration(frame)
    if len(ordered) > 1 and ordered["rank_90"].nunique() == ordered["directions"].nunique() == 1:
        yield (
            f"All {len(ordered)} are alike: 90 % of the energy in {ordered['rank_90'].iloc[0]:.0f} of "
            f"{ordered['directions'].iloc[0]} directions."
        )
        ordered = ordered.iloc[:0]
    for title, picked in (("Most concentrated", ordered.head(3)), ("Most spread out", ordered.tail(3)[::-1])):
        if len(picked):
            yield f"**{title}**\n\n" + "\n".join(_line(row, ranks) for _, row in picked.iterrows())
    if unlike := unlike_peers(frame):
        lines = [
            f"- {markdown(layer_spectra.short_label(one.name))}: 90 % in {one.value:.0f} directions, its peers in {one.usual:.0f}"
            for one in unlike[:3]
        ]
        more = [f"- and {len(unlike) - 3} more"] if len(unlike) > 3 else []
        yield "**Unlike the other layers of their role**\n\n" + "\n".join(lines + more)
    zero = frame.loc[frame["sigma_max"] == 0, "name"].tolist()
    if zero:
        more_zero = f" and {len(zero) - 3} more" if len(zero) > 3 else ""
        yield f"**Nothing but zeros:** {markdown(', '.join(map(layer_spectra.short_label, zero[:3])))}{more_zero}"


def _words(said: Said, frame: pd.DataFrame, ranks: dict[str, int], error: float) -> None:
    st.subheader("What stands out", anchor=False)
    for paragraph in said.paragraphs:
        st.markdown(paragraph)
    st.caption(
        f"{len(frame)} matrices, all singular values of each, within {error:.0e} of the largest; energy is σ². "
        + ("" if ranks else "No plan yet, so no planned ranks are marked.")
    )


def _not_finite(spectra: Spectra) -> None:
    """Names the layers that have no spectrum, because they hold NaN or infinities."""
    names = list(map(layer_spectra.short_label, spectra.not_finite))
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        st.error(
            f"NaN or infinite numbers, and so no spectrum, in {len(names)} of {len(names) + len(spectra.layers)} weights: "
            f"{', '.join(names[:5])}{more}. The checkpoint is damaged; download it again.",
            icon=":material/error:",
        )


def _line(row: pd.Series, ranks: dict[str, int]) -> str:
    kept = f" Rank {ranks[row['name']]} keeps {percent_text(row['energy_at_rank'])}." if row["name"] in ranks else ""
    return (
        f"- {markdown(layer_spectra.short_label(row['name']))} keeps 90 % of its energy in {row['rank_90']:.0f} of {row['directions']} "
        f"directions, half of it in {row['rank_50']:.0f}.{kept}"
    )
