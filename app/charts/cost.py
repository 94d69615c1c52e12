"""Figures of what things cost: GPU memory by part against real cards, bytes on disk, money by the size of the fleet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyzers.units import GIB
from app.charts.theme import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PINK,
    SKY,
    SLATE,
    VERMILLION,
    YELLOW,
    colors,
    figure,
    line_color,
    method_color,
    powers,
)
from app.text import figure as as_text
from app.units import memory_unit

# The parts of a fine-tune's memory, bottom to top; a part that is not listed takes a colour of its own after these.
PART_COLORS = {
    "weights": SLATE,
    "adapters": VERMILLION,
    "gradients": PINK,
    "optimizer": YELLOW,
    "activations": BLUE,
    "attention": SKY,
    "loss_head": ORANGE,
    "temporaries": GREEN,
    "allocator": GREY,
    "context": "#C3CAD1",
}
PART_LABELS = {"weights": "base weights", "loss_head": "loss head", "optimizer": "optimizer state", "context": "CUDA context"}


def memory_bars(
    frame: pd.DataFrame,
    capacities: Mapping[str, float] | None = None,
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    mine: str | None = None,
    dark: bool = False,
) -> go.Figure:
    """Memory of one training step as stacked bars, one a method, with the capacity of real GPUs as lines.

    frame: method (as shown), part, gib; parts stack in the order of the frame. capacities: GPU -> GiB usable. intervals:
    method -> (low, high) GiB of what is reserved, which is more than the parts in use: a dot with whiskers. mine: the card of
    `capacities` that has to hold them, whose line is there wherever the axis reaches it. Drawn in `memory_unit`.
    """
    frame = frame.assign(method=frame["method"].map(as_text))
    intervals = {as_text(method): interval for method, interval in (intervals or {}).items()}
    methods = list(dict.fromkeys(frame["method"]))
    most = max([*frame.groupby("method")["gib"].sum(), *(high for _, high in intervals.values())], default=1.0)
    unit, size = memory_unit(most * GIB)
    scale = GIB / size
    held = scale * frame["gib"]
    totals, top = held.groupby(frame["method"]).sum(), scale * most
    chart = figure(
        dark, height=120 + 62 * len(methods), x=f"GPU memory ({unit})", y="", rows=methods, barmode="stack", bargap=0.35
    )
    digits = ".2f" if size == GIB else ".1f"
    spare = iter(colors([part for part in dict.fromkeys(frame["part"]) if part not in PART_COLORS]).values())
    for part, rows in frame.groupby("part", sort=False):
        chart.add_bar(
            y=rows["method"],
            x=held[rows.index],
            orientation="h",
            name=part_label(part),
            marker={"color": PART_COLORS.get(part) or next(spare)},
            hovertemplate="%{y}: " + part_label(part) + f" %{{x:{digits}}} {unit}<extra></extra>",
        )
    if intervals:
        named = [method for method in methods if method in intervals]
        low, high = ([scale * intervals[method][side] for method in named] for side in (0, 1))
        middle = [(down + up) / 2 for down, up in zip(low, high, strict=True)]
        chart.add_scatter(
            y=named,
            x=middle,
            mode="markers",
            name="reserved",
            marker={"color": INK[dark], "size": 5},
            error_x={
                "array": [up - at for up, at in zip(high, middle, strict=True)],
                "color": INK[dark],
                "thickness": 1.5,
            },
            hovertemplate=f"%{{y}}: %{{x:{digits}}} {unit} reserved, "
            f"between %{{customdata[0]:{digits}}} and %{{customdata[1]:{digits}}} {unit}<extra></extra>",
            customdata=list(zip(low, high, strict=True)),
        )
    sizes = {gpu: scale * capacity for gpu, capacity in (capacities or {}).items()}
    limit = _capacity_lines(chart, sizes, scale, min(totals, default=top), top, dark, mine)
    chart.update_xaxes(range=[0, limit])
    chart.update_yaxes(categoryorder="array", categoryarray=methods[::-1], showgrid=False)
    chart.update_layout(margin={"t": 76})
    return chart


def _capacity_lines(
    chart: go.Figure, capacities: Mapping[str, float], scale: float, low: float, top: float, dark: bool, mine: str | None
) -> float:
    """Draws the cards from a little below the shortest bar (`low`) to the first above the longest (`top`), and returns the end of the axis.
    All in the axis's unit, of which `scale` are one GiB; cards are named in GiB.

    The first card that holds the largest bar is in view, or named at the edge where it would squeeze the bars to nothing. `mine` is
    drawn solid, and by itself.
    """
    ordered = sorted(capacities.items(), key=lambda item: item[1])
    fits = next(((gpu, size) for gpu, size in ordered if size >= top), None)
    near = fits is not None and fits[1] <= 2.5 * top
    limit = 1.08 * fits[1] if near else 1.3 * top
    shown = _grouped([(gpu, size) for gpu, size in ordered if gpu != mine and 0.6 * low <= size <= limit])
    if mine is not None and capacities[mine] <= limit:
        shown.append((capacities[mine], [mine]))
    rows: list[list[tuple[float, float]]] = [[], [], []]  # where the labels of each of three rows begin and end
    # One's own card and the one that fits are named first, so that no other label takes their place; a line that could not be named
    # is not drawn.
    first = [mine, fits and fits[0]]
    for size, gpus in sorted(shown, key=lambda item: min(first.index(gpu) if gpu in first else len(first) for gpu in item[1])):
        text = f"{'My GPU: ' * (mine in gpus)}{', '.join(map(as_text, gpus))} ({size / scale:.1f} GiB)"
        width = 0.0062 * limit * len(text)
        anchor = "right" if size + width > limit else "left"
        start = size - width if anchor == "right" else size
        end = start + width
        free = (number for number, row in enumerate(rows) if all(end <= begun or ended <= start for begun, ended in row))
        number = next(free, None)
        if number is not None:
            rows[number].append((start, end))
            chart.add_vline(
                x=size,
                line={"color": INK[dark], "width": 2.2 if mine in gpus else 1.2, "dash": "solid" if mine in gpus else "dash"},
                layer="above",
            )
            _note(chart, text, dark, x=size, xanchor=anchor, yshift=16 * number)
    if fits is not None and not near:
        _note(
            chart,
            f"{fits[0]} ({fits[1] / scale:.1f} GiB) holds them all \u2192",
            dark,
            x=1,
            xref="paper",
            xanchor="right",
            yshift=0,
        )
    # In the order of the parts in a bar, from left to right; plotly turns it round where bars are stacked.
    chart.update_layout(legend={"y": 0, "yref": "container", "yanchor": "bottom", "traceorder": "normal"}, margin={"b": 76})
    return limit


def _grouped(ordered: list[tuple[str, float]]) -> list[tuple[float, list[str]]]:
    """Cards whose lines could not be told apart go together, at the least of them."""
    groups: list[tuple[float, list[str]]] = []
    for gpu, size in ordered:
        if groups and size <= 1.01 * groups[-1][0]:
            groups[-1][1].append(gpu)
        else:
            groups.append((size, [gpu]))
    return groups


def _note(chart: go.Figure, text: str, dark: bool, **place: Any) -> None:
    chart.add_annotation(
        text=text, y=1.0, yref="paper", yanchor="bottom", showarrow=False, font={"size": 11, "color": MUTED[dark]}, **place
    )


def part_label(part: str) -> str:
    """A part of memory as it is called on screen."""
    return PART_LABELS.get(part, part.replace("_", " "))


def storage_bars(
    frame: pd.DataFrame, *, value: str = "bytes", label: str = "bytes on disk (B)", dark: bool = False
) -> go.Figure:
    """Bytes (or money, or trained numbers) a method, on a logarithmic axis. frame: method, label, text (optional), `value`."""
    frame = frame.assign(label=frame["label"].map(as_text))
    chart = figure(dark, height=90 + 46 * len(frame), x=label, y="", rows=frame["label"].tolist(), bargap=0.35)
    texts = frame["text"] if "text" in frame else frame[value].map("{:,.3g}".format)
    chart.add_bar(
        y=frame["label"],
        x=frame[value],
        orientation="h",
        marker={"color": [method_color(method, position) for position, method in enumerate(frame["method"])]},
        text=texts,
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    positive = frame.loc[frame[value] > 0, value]
    if len(positive):
        chart.update_xaxes(type="log", range=_decades(positive.min(), positive.max()), exponentformat="SI", dtick=1)
    chart.update_yaxes(categoryorder="array", categoryarray=frame["label"].tolist()[::-1], showgrid=False)
    chart.update_layout(margin={"t": 12, "r": 70})
    return chart


def fleet_curves(
    frame: pd.DataFrame, *, value: str = "bytes", label: str = "stored (B)", marker: float | None = None, dark: bool = False
) -> go.Figure:
    """A cost against the number of adapters, both logarithmic, a line a method. frame: method, label, adapters, `value`."""
    chart = figure(dark, height=380, x="adapters in the fleet", y=label)
    for position, (method, part) in enumerate(frame.groupby("method", sort=False)):
        name = as_text(part["label"].iloc[0])
        chart.add_scatter(
            x=part["adapters"],
            y=part[value],
            mode="lines",
            name=name,
            line={"color": line_color(method_color(method, position), dark), "width": 2.5},
            hovertemplate="%{x:,} adapters: %{y:.3s}<extra>" + name + "</extra>",
        )
    chart.update_xaxes(type="log", dtick=1, exponentformat="power", tickfont=powers(dark))
    thousands = range(0, 25, 3)  # plotly's own prefixes end at T
    chart.update_yaxes(
        type="log", tickvals=[10.0**power for power in thousands], ticktext=[f"1{unit}" for unit in ("", *"kMGTPEZY")]
    )
    chart.update_layout(margin_r=24)  # for half of the last tick's words
    if marker:
        chart.add_vline(x=marker, line={"color": MUTED[dark], "dash": "dot", "width": 1.5})
    return chart


def _decades(low: float, high: float) -> list[float]:
    """A log10 range from the decade below `low` to a little above `high`, so that the shortest bar is still a bar."""
    return [math.floor(math.log10(low)) - 0.5, math.log10(high) + 0.35]
