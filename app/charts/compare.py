"""Figures of a comparison: live training curves and accuracy against trained parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyzers.compare.summary import pareto
from app.charts.theme import MUTED, figure, label_colors, line_color
from app.text import figure as as_text

AXES = {"step": "optimizer step", "epoch": "epoch", "seconds": "seconds of training and evaluation"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def training_curves(
    frame: pd.DataFrame, *, x: str = "step", title: str = "loss", smoothing: float = 0.0, log: bool = False, dark: bool = False
) -> go.Figure:
    """Curves of a sweep as they grow: training as thin lines, evaluation with marks; a colour a method
    or plan, a dash a trial of it.

    frame: trial, method, label (the method or plan as shown), seed, learning_rate, kind (``train`` or ``eval``), `x` (a key of `AXES`), value.
    smoothing: weight of the past, 0 to 0.99, of a bias-corrected moving average over training values; evaluations stay raw.
    """
    chart = figure(dark, height=400, x=AXES[x], y=title)
    shown = frame.dropna(subset=["value", x]).assign(label=lambda table: table["label"].map(as_text))
    shades = label_colors(shown["method"], shown["label"])
    seen: dict[str, dict] = {}
    for (label, trial, kind), part in shown.groupby(["label", "trial", "kind"], sort=False):
        part = part.sort_values([x, "step"])
        trials = seen.setdefault(label, {})
        dash = DASHES[trials.setdefault(trial, len(trials)) % len(DASHES)]
        about = f"{label}, seed {part['seed'].iloc[0]}, learning rate {part['learning_rate'].iloc[0]:g}"
        chart.add_scatter(
            x=part[x],
            y=smoothed(part["value"].to_numpy(float), smoothing) if kind == "train" else part["value"],
            mode="lines" if kind == "train" else "lines+markers",
            name=label,
            legendgroup=label,
            showlegend=not any(trace.name == label for trace in chart.data),
            opacity=1.0 if kind == "eval" else 0.85 if dark else 0.7,
            line={"color": line_color(shades[label], dark), "dash": dash, "width": 1.5 if kind == "train" else 2.6},
            marker={"size": 8, "symbol": "circle"},
            hovertemplate=f"{about}, {kind}<br>{x} %{{x}}: %{{y:.4f}}<extra></extra>",
        )
    if log:
        chart.update_yaxes(type="log")
    if x == "step":  # there are no half steps
        longest = shown[x].max() if len(shown) else 0
        chart.update_xaxes(tickformat=",d", dtick=1 if longest <= 12 else None)
    return chart


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average with the start-up bias divided out (as in Adam), so that the first points are not pulled to 0.

    values: the curve. weight: of the past, 0 (raw) to below 1.
    """
    if weight <= 0:
        return values
    average, result = 0.0, np.empty(len(values))
    for index, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        result[index] = average / (1 - weight ** (index + 1))
    return result


def accuracy_against_parameters(frame: pd.DataFrame, *, metric: str = "score", dark: bool = False) -> go.Figure:
    """Score against trained numbers (log axis), error bars, and the Pareto front.

    frame: method, label, parameters, score, low, high (the interval; equal to the score where there is none), one row a method or
    plan. front: whether the line goes through it; without that column, through all that no other beats.
    """
    frame = frame.assign(label=frame["label"].map(as_text))
    chart = figure(dark, height=430, x="trained numbers, without the head (log scale)", y=metric)
    # A log axis has no 0: the control without an adapter stands a decade to the left of the smallest adapter, at a tick called 0.
    counts = frame.loc[frame["parameters"] > 0, "parameters"]
    lowest = math.floor(math.log10(counts.min())) if len(counts) else 0
    highest = math.ceil(math.log10(counts.max())) if len(counts) else 1
    zero = 10.0 ** (lowest - 1)
    front = frame[frame["front"] if "front" in frame else pareto(frame)].sort_values("parameters")
    shades = label_colors(frame["method"], frame["label"])
    chart.add_scatter(
        x=front["parameters"].clip(lower=zero),
        y=front["score"],
        mode="lines",
        name="Pareto front, where differences are no chance" if "front" in frame else "Pareto front",
        line={"color": MUTED[dark], "width": 1.5, "dash": "dot", "shape": "hv"},
        hoverinfo="skip",
    )
    for row in frame.itertuples():
        chart.add_scatter(
            x=[max(row.parameters, zero)],
            y=[row.score],
            mode="markers",
            name=row.label,
            marker={"color": shades[row.label], "size": 13},
            error_y={"array": [row.high - row.score], "arrayminus": [row.score - row.low], "thickness": 1.5, "width": 5},
            hovertemplate=f"<b>{row.label}</b><br>{row.parameters:,.0f} trained numbers<br>{metric} {row.score:.4f} "
            f"({row.low:.4f} to {row.high:.4f})<extra></extra>",
        )
    decades = list(range(lowest, highest + 1))
    has_control = bool((frame["parameters"] == 0).any())
    chart.update_xaxes(
        type="log",
        range=[(lowest - 1.3 if has_control else lowest - 0.3), highest + 0.3],
        tickvals=[*([zero] if has_control else []), *(10.0**power for power in decades)],
        ticktext=[*(["0"] if has_control else []), *(f"{10**power:,}" for power in decades)],
    )
    return chart


def figures_against_each_other(
    frame: pd.DataFrame, x: str, y: str, names: Mapping[str, str], *, log: Collection[str] = (), dark: bool = False
) -> go.Figure:
    """Any two columns of a summary, a point a row, the score with its interval, and the line through the rows of ``front``.

    frame: method, label, `x`, `y`, low, high, front. names: column -> as an axis says it. log: columns on log axes, where all are above 0.
    """
    frame = frame.dropna(subset=[x, y]).assign(label=lambda table: table["label"].map(as_text))
    chart = figure(dark, height=430, x=names[x], y=names[y])
    shades = label_colors(frame["method"], frame["label"])
    line = frame[frame["front"]].sort_values(x)
    chart.add_scatter(
        x=line[x], y=line[y], mode="lines", name="Pareto front", hoverinfo="skip",
        line={"color": MUTED[dark], "width": 1.5, "dash": "dot"},
    )  # fmt: skip
    for row in frame.to_dict("records"):
        spread = {
            "array": [row["high"] - row["score"]],
            "arrayminus": [row["score"] - row["low"]],
            "thickness": 1.5,
            "width": 5,
        }
        bars = {f"error_{axis}": spread for axis, column in (("x", x), ("y", y)) if column == "score"}
        chart.add_scatter(
            x=[row[x]],
            y=[row[y]],
            mode="markers",
            name=row["label"],
            marker={"color": shades[row["label"]], "size": 13},
            hovertemplate=f"<b>{row['label']}</b><br>{names[x]} {row[x]:,.6g}<br>{names[y]} {row[y]:,.6g}<extra></extra>",
            **bars,
        )
    for column, update in ((x, chart.update_xaxes), (y, chart.update_yaxes)):
        if column in log and (frame[column] > 0).all():
            update(type="log")
    return chart
