"""Figures of spectra: the layer x module map, spectra on log axes, cumulative energy, and metrics by depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyzers.spectra import METRICS
from app.charts.theme import CATEGORICAL, INK, MUTED, SEQUENTIAL, VERMILLION, figure, powers, role_color, role_label
from app.text import figure as as_text
from loraxs_core.roles import short_name

# Points drawn for one spectrum. On a log axis more cannot be told apart, and a 12,288-wide layer stays light in the browser.
POINTS = 400

# Beyond it a browser draws by WebGL, which some do not have (and says so in the figure's place); a model of 1,500 layers is below.
MANY_POINTS = 20_000

# Pixels that a colour bar above a map takes with its ticks and a title of one line, and each further line of that. With less, plotly
# makes the margin wider itself, and leaves the title of the axis where it was.
BAR_ABOVE, LINE_ABOVE = 86, 24


def metric_label(metric: str) -> str:
    """A metric of the scan's data frame as an axis title, with its unit."""
    if metric == "energy_at_rank":
        return "Energy inside the planned rank (share of ‖W0‖²)"
    known = METRICS.get(metric)
    if known is None:
        return metric.replace("_", " ")
    return f"{known.label} ({known.unit})" if known.unit else known.label


def module_rows(names: Sequence[str]) -> list[str]:
    """The row of the map each module belongs to: its path inside its layer, with the stack in front where there are several.

    >>> module_rows(["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q"])
    ['encoder · layer.0.SelfAttention.q', 'decoder · layer.0.SelfAttention.q']
    """
    inside = [short_name(name) for name in names]
    stacks = [name[: len(name) - len(short)].split(".")[0] for name, short in zip(names, inside, strict=True)]
    layered = {stack for stack, name, short in zip(stacks, names, inside, strict=True) if short != name}
    if len(layered) < 2:
        return inside
    return [f"{stack} · {short}" if stack in layered else short for stack, short in zip(stacks, inside, strict=True)]


def layer_map(
    frame: pd.DataFrame,
    metric: str,
    *,
    label: str | None = None,
    selected: Sequence[str] = (),
    signed: bool = False,
    dark: bool = False,
) -> go.Figure:
    """The layer x module map: one cell a weight, coloured by `metric`; its name is the first custom datum of the cell's point.

    frame: one row a weight with name, role, layer (NaN outside the stack), shape, and the column `metric`. selected: names to
    mark with a frame. Where the frame has a column ``model``, the rows of each model stand together. signed: the colours turn at 0. Matrices of nothing but zeros stay blank: they have no spectrum, and would take
    the whole scale for themselves. The picture is a heatmap, which fills its cells at any depth; since Streamlit is told of no selection in a
    heatmap, invisible points lie on the cells to be clicked.
    """
    label = label or metric_label(metric)
    rows = module_rows(frame["name"].tolist())
    if "model" in frame:
        rows = [f"{model} · {row}" for model, row in zip(frame["model"], rows, strict=True)]
    order = list(dict.fromkeys(rows))[::-1]
    depth = frame["layer"].dropna()
    last = int(depth.max()) if len(depth) else -1
    columns = [last + 1 if pd.isna(layer) else int(layer) for layer in frame["layer"]]
    count = max(columns, default=0) + 1
    height = float(np.clip(620 / max(len(order), 1), 12, 34))
    values = frame[metric].astype(float)
    places = [order.index(row) for row in rows]
    grid = np.full((len(order), count), np.nan)
    grid[places, columns] = values.mask(frame["sigma_max"] == 0) if "sigma_max" in frame and metric != "rank" else values
    gap = 3 if count <= 16 else 1 if count <= 100 else 0
    title = _wrapped(label)
    above = BAR_ABOVE + LINE_ABOVE * title.count("<br>")
    chart = figure(dark, height=int(len(order) * height + 62 + above), x="layer (depth)", y="", rows=[*map(as_text, order)])
    chart.add_heatmap(
        z=grid,
        colorscale="RdBu" if signed else SEQUENTIAL,
        reversescale=signed,
        **_limits(grid, signed),
        xgap=gap,
        ygap=3,
        hoverinfo="skip",
        colorbar={  # above the map: beside it, it takes a third of a telephone's width
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yanchor": "bottom",
            "ypad": 4,
            "xpad": 0,
            "title": {"text": title, "side": "top", "font": {"size": 12}},
            "thickness": 10,
            "outlinewidth": 0,
            **_whole_ticks(grid),
        },
    )
    # Beyond a few thousand points SVG makes the page crawl; WebGL does the same.
    draw = go.Scattergl if len(frame) > MANY_POINTS else go.Scatter
    texts = [frame["name"], frame["role"].map(role_label), frame.get("shape", frame["name"])]
    described = [frame["name"], *(column.astype(str).map(as_text) for column in texts), values.map("{:.4g}".format)]
    chart.add_trace(
        draw(
            x=columns,
            y=places,
            mode="markers",
            marker={"symbol": "square", "size": height, "opacity": 0},
            customdata=np.stack(described, axis=-1),
            hovertemplate="<b>%{customdata[1]}</b><br>%{customdata[2]}, %{customdata[3]}<br>%{customdata[4]}<extra></extra>",
            selected={"marker": {"opacity": 0}},
            unselected={"marker": {"opacity": 0}},
            showlegend=False,
        )
    )
    _frame_cells(chart, [cell for name, *cell in zip(frame["name"], columns, places, strict=True) if name in set(selected)])
    _depth_axes(chart, order, last, beyond=last + 1 in columns)
    chart.update_layout(margin={"t": above})
    # Where a colour bar lies above, plotly measures the title's distance from 32 pixels higher, into the ticks' labels.
    chart.update_xaxes(title_standoff=40, automargin=False)
    return chart


def _limits(grid: np.ndarray, signed: bool) -> dict:
    """The ends of the colour scale, where plotly's own would not do: alike on both sides of 0, or half a step around one value."""
    found = grid[np.isfinite(grid)]
    if not len(found):
        return {}
    low, high = float(found.min()), float(found.max())
    if signed:
        most = max(abs(low), abs(high)) or 1.0
        return {"zmin": -most, "zmax": most}
    return {"zmin": low - 0.5, "zmax": high + 0.5} if low == high else {}


def _whole_ticks(grid: np.ndarray) -> dict:
    """Ticks of a colour bar for few whole numbers: plotly would put some between them."""
    found = grid[np.isfinite(grid)]
    if not len(found) or (found != np.round(found)).any():
        return {}
    low, high = int(found.min()), int(found.max())
    return {"tickvals": list(range(low, high + 1))} if high - low <= 10 else {"tickformat": ",d"}


def _frame_cells(chart: go.Figure, cells: list[list[int]]) -> None:
    for column, place in cells:
        corners = {"x0": column - 0.5, "x1": column + 0.5, "y0": place - 0.5, "y1": place + 0.5}
        chart.add_shape(type="rect", line={"color": VERMILLION, "width": 3}, **corners)


def _depth_axes(chart: go.Figure, rows: list[str], last: int, *, beyond: bool) -> None:
    """Depth to the right, up to layer `last` and a column for what lies outside the stack; a row a module."""
    count = last + 1 + beyond
    step = math.ceil(count / 12)  # as many as stand beside each other on a telephone
    ticks = list(range(0, last + 1, step))
    texts = [str(tick) for tick in ticks]
    if beyond:
        ticks, texts = [*ticks, last + 1], [*texts, "none"]
    chart.update_xaxes(tickvals=ticks, ticktext=texts, range=[-0.55, count - 0.45], showgrid=False, zeroline=False)
    chart.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[*map(as_text, rows)],
        range=[-0.55, len(rows) - 0.45],
        showgrid=False,
        zeroline=False,
    )


def spectrum(
    spectra: Mapping[str, np.ndarray],
    ranks: Mapping[str, int] | None = None,
    *,
    overlay: Mapping[str, np.ndarray] | None = None,
    overlay_label: str = "second model",
    relative: bool = False,
    log_index: bool = True,
    dark: bool = False,
) -> go.Figure:
    """Singular values against their index, both axes logarithmic; the planned rank of each layer as a dotted line and a mark.

    spectra: label -> σ, descending. ranks: label -> planned rank. overlay: the same labels in another model, drawn dashed.
    relative: divide each spectrum by its σ₁.
    """
    spectra, ranks, overlay = _labelled(spectra), _labelled(ranks), _labelled(overlay)
    y = "singular value σᵢ / σ₁ (ratio)" if relative else "singular value σᵢ (weight units)"
    chart = figure(dark, height=430, x="index i of the singular value", y=y)
    longest = max((len(values) for values in spectra.values()), default=0)
    chart.update_xaxes(type="log" if log_index else "linear", dtick=_decades_or_digits(longest) if log_index else None)
    # One tick a decade where there are several; with one or none, the digits between help.
    positive = [
        float(value) for values in spectra.values() for value in (np.max(values), np.min(values)) if len(values) and value > 0
    ]
    decades = np.log10(max(positive) / min(positive)) if positive else 0
    chart.update_yaxes(
        type="log", exponentformat="power", dtick=1 if decades > 2 else None, tickfont=powers(dark) if decades > 2 else None
    )
    for position, (label, values) in enumerate(spectra.items()):
        color = CATEGORICAL[position % len(CATEGORICAL)]
        for source, dash in ((values, "solid"), (overlay.get(label), "dash")):
            if source is None or not len(source):
                continue
            index, sigma = _decimated(source, relative)
            name = label if dash == "solid" else f"{label} · {as_text(overlay_label)}"
            hover = "i = %{x}<br>σ = %{y:.4g}<extra>" + name + "</extra>"
            chart.add_scatter(
                x=index,
                y=sigma,
                mode=_mode(sigma),
                name=name,
                line={"color": color, "dash": dash, "width": 2},
                hovertemplate=hover,
            )
        _mark_rank(chart, label, values, ranks.get(label), color, relative)
    return _with_ranks_in_legend(chart, ranks)


def cumulative_energy(
    shares: Mapping[str, np.ndarray], ranks: Mapping[str, int] | None = None, *, dark: bool = False
) -> go.Figure:
    """The share of the energy Σσ² that the first i directions hold, with the planned ranks marked.

    shares: label -> share in the first i + 1 directions at index i (`LayerSpectrum.cumulative_energy`). ranks: label -> planned
    rank.
    """
    shares, ranks = _labelled(shares), _labelled(ranks)
    chart = figure(dark, height=430, x="directions kept, i", y="energy kept, Σσ² (% of the layer's)")
    chart.update_xaxes(type="log", dtick=_decades_or_digits(max((len(values) for values in shares.values()), default=0)))
    chart.update_yaxes(range=[0, 103])
    for position, (label, values) in enumerate(shares.items()):
        color = CATEGORICAL[position % len(CATEGORICAL)]
        if not len(values):
            continue
        share = 100 * np.asarray(values, dtype=float)
        keep = _indices(len(share))
        hover = "%{x} directions keep %{y:.1f} %<extra>" + label + "</extra>"
        chart.add_scatter(
            x=keep + 1, y=share[keep], mode=_mode(keep), name=label, line={"color": color, "width": 2}, hovertemplate=hover
        )
        rank = ranks.get(label)
        if rank and rank <= len(share):
            reached = share[rank - 1]
            text = f"{label}: rank {rank} keeps {reached:.1f} %"
            chart.add_scatter(
                x=[rank],
                y=[reached],
                mode="markers",
                marker=_mark(color, dark),
                showlegend=False,
                hovertemplate=text + "<extra></extra>",
            )
    for level in (50, 90, 99):
        chart.add_hline(y=level, line={"color": MUTED[dark], "width": 1, "dash": "dot"}, opacity=0.6)
    return _with_ranks_in_legend(chart, ranks)


def density(
    values: np.ndarray, noise: tuple[np.ndarray, np.ndarray], *, label: str, rank: int | None = None, dark: bool = False
) -> go.Figure:
    """The histogram of a layer's singular values with the law that noise of the same strength would follow.

    values: σ, descending. noise: singular values and the density there (share per unit of σ). rank: planned, marked at its σ.
    """
    chart = figure(
        dark, height=430, x="singular value σ (weight units)", y="share of the directions (per unit of σ)", bargap=0.02
    )
    chart.add_histogram(
        x=values,
        nbinsx=60,
        histnorm="probability density",
        name=as_text(label),
        marker={"color": CATEGORICAL[0]},
        hovertemplate="σ %{x}: %{y:.3f}<extra></extra>",
    )
    line = {"color": CATEGORICAL[1], "width": 2.5}
    chart.add_scatter(x=noise[0], y=noise[1], mode="lines", name="noise (Marchenko–Pastur)", line=line, hoverinfo="skip")
    if rank and len(values):
        mark = {"color": INK[dark], "width": 1.5, "dash": "dash"}
        chart.add_shape(
            type="line", yref="paper", y0=0, y1=1, x0=values[min(rank, len(values)) - 1], x1=values[min(rank, len(values)) - 1],
            line=mark, showlegend=True, name=f"planned rank {rank}: trained to the right",
        )  # fmt: skip
    return chart


def metric_by_layer(frame: pd.DataFrame, metric: str, *, label: str | None = None, dark: bool = False) -> go.Figure:
    """`metric` against depth, one line a role. frame: role, layer and the column `metric`, one row a weight."""
    chart = figure(dark, height=360, x="layer (depth)", y=label or metric_label(metric))
    inside = frame.dropna(subset=["layer"])
    for role, part in inside.groupby("role", sort=False):
        line = part.groupby("layer")[metric].mean()
        chart.add_scatter(
            x=line.index, y=line, mode="lines+markers", name=role_label(role), line={"color": role_color(role), "width": 2}
        )
    return chart


def _decades_or_digits(longest: int) -> int | str:
    """Ticks of a logarithmic index axis: one a decade or, where there is hardly one, at 2 and 5 as well."""
    return 1 if longest >= 100 else "D2"


def _mode(points: np.ndarray) -> str:
    """A line; one point, as of a matrix with a single row, would have none."""
    return "lines" if len(points) > 1 else "markers"


def _indices(count: int) -> np.ndarray:
    """At most `POINTS` of the indices 0 … count - 1, evenly spaced on a log axis."""
    if count <= POINTS:
        return np.arange(count)
    return np.unique(np.round(np.geomspace(1, count, POINTS)).astype(int)) - 1


def _decimated(values: np.ndarray, relative: bool) -> tuple[np.ndarray, np.ndarray]:
    """Indices from 1 and values, decimated; zeros are left out, as a log axis has no place for them."""
    sigma = np.asarray(values, dtype=float)
    sigma = sigma / sigma[0] if relative and sigma[0] > 0 else sigma
    keep = _indices(len(sigma))
    keep = keep[sigma[keep] > 0]
    return keep + 1, sigma[keep]


def _mark(color: str, dark: bool) -> dict:
    return {"color": color, "size": 11, "symbol": "diamond", "line": {"color": INK[dark], "width": 1.5}}


def _mark_rank(chart: go.Figure, label: str, values: np.ndarray, rank: int | None, color: str, relative: bool) -> None:
    if not rank or not len(values):
        return
    sigma = float(values[min(rank, len(values)) - 1]) / (float(values[0]) or 1.0 if relative else 1.0)
    dark = chart.layout.template.layout.font.color == INK[True]
    chart.add_vline(x=rank, line={"color": color, "width": 1, "dash": "dot"})
    hover = f"{label}: planned rank {rank}, σ = %{{y:.4g}}<extra></extra>"
    chart.add_scatter(x=[rank], y=[sigma], mode="markers", marker=_mark(color, dark), showlegend=False, hovertemplate=hover)


def _labelled(values: Mapping[str, object] | None) -> dict:
    """Label -> what belongs to it, the label as plotly shows it."""
    return {as_text(label): value for label, value in (values or {}).items()}


def _with_ranks_in_legend(chart: go.Figure, ranks: Mapping[str, int]) -> go.Figure:
    for trace in chart.data:
        if trace.name in ranks:
            trace.name = f"{trace.name} (rank {ranks[trace.name]})"
    chart.update_layout(showlegend=True)
    return chart


def _wrapped(label: str) -> str:
    """Two lines for a long colour-bar title."""
    return label.replace(" (", "<br>(", 1) if len(label) > 34 else label
