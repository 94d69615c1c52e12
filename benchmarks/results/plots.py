"""The plots of docs/results.md, SVG, on a light ground of their own so that they read on a dark page as well."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.results.tables import ITSELF, Found, of_kind

INK, SOFT, RATES = "#1b3a4b", "#8aa4b3", ("#2a6f97", "#c8553d", "#6a994e")
STYLE = {
    "svg.hashsalt": "loraxs", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip
METHODS_PLOT, BASES_PLOT, RANKS_PLOT = "results_methods.svg", "results_bases.svg", "results_ranks.svg"
PICTURES = {
    METHODS_PLOT: "Each method against LoRA-XS, paired by seed, with 95 % intervals",
    BASES_PLOT: "LoRA-XS with random, middle and bottom vectors against the top singular vectors, paired by seed",
    RANKS_PLOT: "Score over the rank of LoRA-XS at each learning rate, with 95 % intervals, and the head alone",
}


def drawn(found: list[Found]) -> dict[str, str]:
    """File name -> SVG, of the plots that there are trials for."""
    makers: dict[str, Callable[[list[Found]], Figure]] = {METHODS_PLOT: _methods, BASES_PLOT: _bases, RANKS_PLOT: _ranks}
    with mpl.rc_context(STYLE):
        return {name: _svg(make(shown(name, found))) for name, make in makers.items() if shown(name, found)}


def shown(picture: str, found: list[Found]) -> list[Found]:
    """The entries that `picture` has something of: comparisons of two seeds or more."""
    if picture == METHODS_PLOT:
        return [one for one in found if _pairs(one.race.against)]
    kind = "basis" if picture == BASES_PLOT else "rank"
    return [one for one in found if len(of_kind(one.apart, kind)) > 1 and _pairs(one.apart.against)]


def _pairs(against: dict[str, dict]) -> dict[str, dict]:
    return {label: row for label, row in against.items() if row["seeds"] > 1}


def _methods(found: list[Found]) -> Figure:
    return _forest([(one.title, _pairs(one.race.against)) for one in found], "points against LoRA-XS at its default rate")


def _bases(found: list[Found]) -> Figure:
    panels = []
    for one in found:
        labels = set(of_kind(one.apart, "basis")["label"])
        rows = {label.partition(", ")[2]: row for label, row in _pairs(one.apart.against).items() if label in labels}
        panels.append((one.title, rows))
    return _forest(panels, "points against the top singular vectors (LoRA-XS, r = 16)")


def _forest(panels: list[tuple[str, dict[str, dict]]], axis: str) -> Figure:
    """A panel an entry: mean differences in points with their intervals, zero marked."""
    figure = Figure(figsize=(7.5, 0.7 + sum(0.75 + 0.3 * len(rows) for _, rows in panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=[1.5 + len(rows) for _, rows in panels])[
        :, 0
    ]
    for place, (title, rows) in zip(axes, panels, strict=True):
        mean, low, high = (100 * np.array([row[key] for row in rows.values()]) for key in ("difference", "low", "high"))
        heights = -np.arange(len(rows))
        place.axvline(0, color=SOFT, linewidth=1)
        place.errorbar(mean, heights, xerr=(mean - low, high - mean), fmt="o", color=INK, capsize=3)
        place.set_yticks(heights, [f"{label} ({row['seeds']} seeds)" for label, row in rows.items()])
        place.set_ylim(0.6 - len(rows), 0.6)
        place.set_title(title, loc="left", fontsize=10)
    axes[-1].set_xlabel(f"{axis} (95 %, paired by seed)")
    return figure


def _ranks(found: list[Found]) -> Figure:
    figure = Figure(figsize=(7.5, 3.6 * len(found)), layout="constrained")
    for place, one in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True):
        for rate, colour in zip(one.rates, RATES, strict=False):
            rows = of_kind_at(one, rate)
            place.errorbar(
                rows["rank"], rows["score"], yerr=(rows["score"] - rows["low"], rows["high"] - rows["score"]), fmt="o-", capsize=3,
                color=colour, label=f"LoRA-XS, rate {rate:g} ({rows['seeds'].min()} to {rows['seeds'].max()} seeds)",
            )  # fmt: skip
        alone = one.race.summary[one.race.summary["method"] == "head-only"]
        for row in alone.to_dict("records"):
            place.axhspan(row["low"], row["high"], color=SOFT, alpha=0.25, linewidth=0)
            place.axhline(row["score"], color=SOFT, linestyle="--", label=f"the head alone ({row['seeds']} seeds)")
        place.set_xscale("log", base=2)
        ranks = sorted(set(of_kind(one.apart, "rank")["rank"]))
        place.set_xticks(ranks, [f"{rank:.0f}" for rank in ranks])
        place.set_xlabel("rank r (r² numbers trained a module)")
        place.set_ylabel(f"{one.metric} (95 % over seeds)")
        place.set_title(one.title, loc="left", fontsize=10)
        place.legend(frameon=False, fontsize=9)
    return figure


def of_kind_at(one: Found, rate: float) -> pd.DataFrame:
    """The rank sweep of `one` at one rate, by rank."""
    rows = one.at(rate)
    return rows[(rows["label"] == ITSELF) | rows["label"].str.contains("r = ")].dropna(subset=["score"]).sort_values("rank")


def _svg(figure: Figure) -> str:
    """Without a date, and with numbers rounded, so that the same trials give the same text."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    rounded = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", out.getvalue())
    return "\n".join(line.rstrip() for line in rounded.splitlines()) + "\n"
