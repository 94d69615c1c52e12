"""Figures of a rank plan."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts.spectra import layer_map, module_rows
from app.charts.theme import INK, MUTED, figure, method_color, role_color, role_label
from app.text import figure as shown

# With more, a bar is hardly a pixel wide and its colour cannot be told.
BARS_AT_MOST = 300


def rank_bars(frame: pd.DataFrame, *, uniform: int | float | None = None, dark: bool = False) -> go.Figure:
    """The rank of every module by depth, one bar a module, coloured by role, with the uniform baseline as a line.

    Of a model with more than `BARS_AT_MOST` modules a map: layer by module, coloured by rank.

    frame: name, role, layer, rank, one row a module, in the order of the inventory. uniform: rank of the baseline plan.
    """
    if len(frame) > BARS_AT_MOST:
        return layer_map(frame, "rank", label="rank r (directions)", dark=dark)
    chart = figure(dark, height=380, x="layer (depth)", y="rank r (directions)", bargap=0.18, bargroupgap=0.02)
    rows = module_rows(frame["name"].tolist())
    outside = "none"
    layers = [outside if pd.isna(layer) else str(int(layer)) for layer in frame["layer"]]
    table = frame.assign(module=rows, column=layers)
    seen: set[str] = set()
    # Modules that share a role in one layer (experts, a second attention) get a bar each, and the role one entry in the legend.
    for (role, module), part in table.groupby(["role", "module"], sort=False):
        chart.add_bar(
            x=part["column"],
            y=part["rank"],
            name=role_label(role),
            legendgroup=role,
            showlegend=role not in seen,
            marker={"color": role_color(role), "line": {"width": 0}},
            customdata=part["name"].map(shown),
            hovertemplate="<b>%{customdata}</b><br>rank %{y}<extra>" + shown(module) + "</extra>",
        )
        seen.add(role)
    chart.update_xaxes(type="category", categoryorder="array", categoryarray=list(dict.fromkeys(layers)))
    if uniform:
        line = {"color": INK[dark], "width": 1.5, "dash": "dash"}
        chart.add_shape(
            type="line",
            xref="paper",
            x0=0,
            x1=1,
            y0=uniform,
            y1=uniform,
            line=line,
            showlegend=True,
            name=f"uniform, rank {uniform:g}",
        )
    return chart


def score_over_rank(points: pd.DataFrame, head: tuple[float, float, float], metric: str, *, dark: bool = False) -> go.Figure:
    """Score over the rank with its 95 % interval, each rank at its best rate, and the head alone as a band.

    points: rank, rate, score, low, high, one row a rank. head: mean, low, high. metric: as the axis calls it.
    """
    chart = figure(dark, height=300, x="rank r of every layer", y=f"{metric} on the test split (95 %)")
    mean, low, high = head
    chart.add_hrect(y0=low, y1=high, fillcolor=MUTED[dark], opacity=0.15, line_width=0)
    chart.add_hline(y=mean, line={"color": MUTED[dark], "width": 1.5, "dash": "dash"}, name="the head alone", showlegend=True)
    chart.add_scatter(
        x=points["rank"],
        y=points["score"],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": points["high"] - points["score"],
            "arrayminus": points["score"] - points["low"],
        },
        mode="lines+markers",
        name="LoRA-XS",
        line={"color": method_color("lora-xs"), "width": 2},
        customdata=points["rate"],
        hovertemplate="rank %{x}: %{y:.3f} at learning rate %{customdata:g}<extra></extra>",
    )
    chart.update_xaxes(type="log", tickvals=points["rank"], ticktext=[str(rank) for rank in points["rank"]])
    return chart


def rank_difference(frame: pd.DataFrame, *, dark: bool = False) -> go.Figure:
    """Where one plan has more directions than another, and where fewer, as a map. frame: as of `layer_map`, with ``difference``."""
    return layer_map(frame, "difference", label="rank minus the other's (directions)", signed=True, dark=dark)


def ranks_side_by_side(frame: pd.DataFrame, *, dark: bool = False) -> go.Figure:
    """The ranks of several plans on one map and one scale, the rows of each together. frame: as of `layer_map`, with ``plan``."""
    return layer_map(frame.assign(model=frame["plan"]), "rank", label="rank r (directions)", dark=dark)


def rank_comparison(frame: pd.DataFrame, *, dark: bool = False) -> go.Figure:
    """Mean rank by role under several plans. frame: plan, role, rank, one row a plan and module."""
    chart = figure(dark, height=320, x="role", y="mean rank r (directions)", barmode="group")
    means = frame.groupby(["plan", "role"], sort=False)["rank"].mean().reset_index()
    for plan, part in means.groupby("plan", sort=False):
        name = shown(plan)
        chart.add_bar(
            x=part["role"].map(role_label), y=part["rank"], name=name, hovertemplate="%{x}: %{y:.1f}<extra>" + name + "</extra>"
        )
    return chart
