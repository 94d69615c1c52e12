"""Plots for the documents: differences with their intervals, as SVG on a light ground of their own that reads on a dark page as well."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

INK, SOFT = "#1b3a4b", "#8aa4b3"
STYLE = {
    "svg.hashsalt": "loraxs", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One row. low, high: its interval, drawn thick; wide: a second, thin one; hollow: it decides nothing yet."""

    label: str
    mean: float
    low: float
    high: float
    wide: tuple[float, float] | None = None
    hollow: bool = False


def forest(panels: Sequence[tuple[str, Sequence[Difference]]], axis: str, reach: float | None = None) -> Figure:
    """A panel a title, a row a difference, zero marked, one scale for all. reach: what lies further from zero is cut off."""
    figure = Figure(figsize=(7.5, 0.7 + sum(0.5 + 0.3 * len(rows) for _, rows in panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=[0.7 + len(rows) for _, rows in panels])
    for place, (title, rows) in zip(axes[:, 0], panels, strict=True):
        place.axvline(0, color=SOFT, linewidth=1)
        for height, row in enumerate(rows):
            if row.wide:
                place.plot(row.wide, (-height, -height), color=SOFT, linewidth=1)
            place.plot((row.low, row.high), (-height, -height), color=INK, linewidth=3, solid_capstyle="butt")
            place.plot(row.mean, -height, "o", color=INK, markerfacecolor="white" if row.hollow else INK)
        place.set_yticks([-height for height in range(len(rows))], [row.label for row in rows])
        place.set_ylim(0.6 - len(rows), 0.6)
        place.set_title(title, loc="left", fontsize=10)
    if reach:
        axes[-1, 0].set_xlim(-reach, reach)
    axes[-1, 0].set_xlabel(axis)
    return figure


def svg(figure: Figure) -> str:
    """Without a date, numbers rounded and marks named by their order, so that the same trials give the same text: matplotlib's names are
    checksums of numbers whose last digits depend on what was drawn before. Call it, and draw, within `styled`."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text, names = out.getvalue(), {}
    for name in re.findall(r'id="([a-z][0-9a-f]{10})"', text):
        names.setdefault(name, f"mark{len(names) + 1}")
    text = re.sub("|".join(names) or "$^", lambda name: names[name[0]], text)
    rounded = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", text)
    return "\n".join(line.rstrip() for line in rounded.splitlines()) + "\n"


def styled():
    return mpl.rc_context(STYLE)
