"""Colours and templates of every figure: one template for light, one for dark, and a fixed colour for every role and method.

The categorical colours are Okabe and Ito's (2008), told apart with any common colour vision; two greys stand for what is not
adapted. A role, a method or a part of memory keeps its colour in every chart of the page and of the report.
"""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from loraxs_core.roles import LABELS

BLUE, SKY, GREEN, PINK = "#0072B2", "#56B4E9", "#009E73", "#CC79A7"
ORANGE, VERMILLION, YELLOW, GREY, SLATE = "#E69F00", "#D55E00", "#C9B037", "#8C96A0", "#5F6B76"
CATEGORICAL = (BLUE, VERMILLION, GREEN, ORANGE, PINK, SKY, YELLOW, SLATE)

ROLE_COLORS = {
    "attention.query": BLUE,
    "attention.key": SKY,
    "attention.value": GREEN,
    "attention.qkv": BLUE,
    "attention.output": PINK,
    "attention.position": "#7A5195",
    "mixer.input": SKY,
    "mixer.output": PINK,
    "mlp.gate": YELLOW,
    "mlp.up": ORANGE,
    "mlp.gate_up": ORANGE,
    "mlp.down": VERMILLION,
    "embedding": GREY,
    "head": SLATE,
    "other": "#B5BDC5",
}

METHOD_COLORS = {
    "lora-xs": VERMILLION,
    "lora": BLUE,
    "vera": ORANGE,
    "full": SLATE,
    "head-only": GREY,
    "rslora": SKY,
    "dora": GREEN,
    "pissa": PINK,
    "ia3": YELLOW,
    "tinylora": "#7A5195",
    "psoft": "#2F7F79",
}

# One hue from dark to light: order is readable in grey as well, and the ends stand out from both backgrounds.
SEQUENTIAL = "Viridis"

_NARROW, _WIDE = frozenset(" |',.:;ijlI!f()[]{}-"), frozenset("mwMW%@")  # letters of the font below
_BESIDE_ROWS = 30  # pixels of the ticks and of the axis's title

FAMILY = '"Source Sans", "Source Sans Pro", "Segoe UI", Helvetica, Arial, sans-serif'
INK = {False: "#1B2430", True: "#E8ECF1"}
MUTED = {False: "#5B6773", True: "#9BA7B4"}
GRID = {False: "#E3E8ED", True: "#2C3642"}
BACKGROUND = {False: "#FFFFFF", True: "#11161D"}


# The dark ones among the colours, as lines on the dark background.
_ON_DARK = {BLUE: "#2E8FD0", SLATE: "#93A0AC", "#7A5195": "#AE8CC6", "#2F7F79": "#4FA8A1"}


def line_color(color: str, dark: bool) -> str:
    """`color` for a line, lighter on the dark background where it would hardly be seen there."""
    return _ON_DARK.get(color, color) if dark else color


def role_label(role: str) -> str:
    """What a role is called on screen."""
    return LABELS.get(role, role)


def role_color(role: str) -> str:
    """The colour of a role, the same everywhere."""
    return ROLE_COLORS.get(role, ROLE_COLORS["other"])


def method_color(method: str, position: int = 0) -> str:
    """The colour of a method; one unknown to the list takes the next of the categorical ones."""
    return METHOD_COLORS.get(method, CATEGORICAL[position % len(CATEGORICAL)])


def label_colors(methods: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label: its method's for the first label of a method, the next unused one for further plans of it."""
    pairs = dict(zip(labels, methods, strict=True))
    first = {method: label for label, method in reversed(pairs.items())}
    taken = {method_color(method) for method in first}
    spare = [color for color in (*CATEGORICAL, *METHOD_COLORS.values()) if color not in taken] or list(CATEGORICAL)
    further = [label for label, method in pairs.items() if first[method] != label]
    return {label: method_color(method) for label, method in pairs.items()} | {
        label: spare[index % len(spare)] for index, label in enumerate(further)
    }


def colors(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of `names`, in order, repeating after eight."""
    return {name: CATEGORICAL[index % len(CATEGORICAL)] for index, name in enumerate(names)}


@functools.cache
def template(dark: bool) -> go.layout.Template:
    """The plotly template for one of the two themes. A figure takes a copy of it."""
    axis = {
        "gridcolor": GRID[dark],
        "linecolor": MUTED[dark],
        "zerolinecolor": GRID[dark],
        "tickcolor": MUTED[dark],
        "tickfont": {"family": FAMILY, "color": MUTED[dark], "size": 12},
        "title": {"font": {"family": FAMILY, "color": INK[dark], "size": 13}, "standoff": 8},
        "automargin": True,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
    }
    return go.layout.Template(
        layout={
            "font": {
                "family": FAMILY,
                "size": 13,
                "color": INK[dark],
            },
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(CATEGORICAL),
            "margin": {"l": 60, "r": 16, "t": 42, "b": 54},
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "xanchor": "left", "font": {"size": 12}},
            "hoverlabel": {"font": {"size": 13, "color": INK[dark]}, "bgcolor": BACKGROUND[dark], "bordercolor": MUTED[dark]},
            "barcornerradius": 2,
        }
    )


def figure(dark: bool, *, height: int, x: str, y: str, rows: Sequence[str] = (), **layout: Any) -> go.Figure:
    """An empty figure with its axes titled. rows: what is written beside the ticks of the y axis, where those are no numbers.

    Where labels, titles and a legend of one line need more room than a margin has, plotly draws the whole figure once more, so the margins
    have that room from the beginning.
    """
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    chart = go.Figure(layout={"template": template(dark), "height": height, **axes, **layout})
    if rows:
        chart.update_layout(margin_l=_BESIDE_ROWS + max(map(text_width, rows)))
    return chart


def text_width(text: str, size: int = 12) -> int:
    """About how many pixels `text` takes in the page's font, not less than it does. text: as plotly reads it."""
    shown = html.unescape(text)
    return math.ceil(
        size * sum(0.3 if one in _NARROW else 0.85 if one in _WIDE else 0.66 if one.isupper() else 0.55 for one in shown)
    )


def powers(dark: bool) -> dict:
    """A tick font for axes whose ticks are powers of ten: plotly draws those a quarter larger than it is told."""
    return {"family": FAMILY, "color": MUTED[dark], "size": 10}
