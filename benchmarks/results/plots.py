"""The plots of docs/results.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.drawing import SOFT, Difference, forest, styled, svg
from benchmarks.results.tables import ITSELF, Found, of_kind

RATES = ("#2a6f97", "#c8553d", "#6a994e")  # colours
METHODS_PLOT, BASES_PLOT, RANKS_PLOT = "results_methods.svg", "results_bases.svg", "results_ranks.svg"
PICTURES = {
    METHODS_PLOT: "Each method against LoRA-XS, paired by seed, with 95 % intervals",
    BASES_PLOT: "LoRA-XS with random, middle and bottom vectors against the top singular vectors, paired by seed",
    RANKS_PLOT: "Score over the rank of LoRA-XS at each learning rate, with 95 % intervals, and the head alone",
}


def drawn(found: list[Found]) -> dict[str, str]:
    """File name -> SVG, of the plots that there are trials for."""
    makers: dict[str, Callable[[list[Found]], Figure]] = {METHODS_PLOT: _methods, BASES_PLOT: _bases, RANKS_PLOT: _ranks}
    with styled():
        return {name: svg(make(shown(name, found))) for name, make in makers.items() if shown(name, found)}


def shown(picture: str, found: list[Found]) -> list[Found]:
    """The entries that `picture` has something of: comparisons of two seeds or more."""
    if picture == METHODS_PLOT:
        return [one for one in found if _differences(one.race.against)]
    kind = "basis" if picture == BASES_PLOT else "rank"
    return [one for one in found if len(of_kind(one.apart, kind)) > 1 and _differences(one.apart.against)]


def _methods(found: list[Found]) -> Figure:
    panels = [(one.title, _differences(one.race.against)) for one in found]
    return forest(panels, "points against LoRA-XS, each at its default rate (95 %, paired by seed)")


def _bases(found: list[Found]) -> Figure:
    panels = []
    for one in found:
        labels = set(of_kind(one.apart, "basis")["label"])
        panels.append((one.title, _differences({label: row for label, row in one.apart.against.items() if label in labels})))
    return forest(panels, "points against the top singular vectors, LoRA-XS at r = 16 (95 %, paired by seed)")


def _differences(against: Mapping[str, dict]) -> list[Difference]:
    """In points, of two seeds or more."""
    return [
        Difference(f"{label} ({row['seeds']} seeds)", *(100 * row[key] for key in ("difference", "low", "high")))
        for label, row in against.items()
        if row["seeds"] > 1
    ]


def _ranks(found: list[Found]) -> Figure:
    figure = Figure(figsize=(7.5, 3.6 * len(found)), layout="constrained")
    for place, one in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True):
        for rate, colour in zip(one.rates, RATES, strict=False):
            rows = _sweep(one, rate)
            seeds = " to ".join(map(str, sorted({rows["seeds"].min(), rows["seeds"].max()})))
            error = (rows["score"] - rows["low"], rows["high"] - rows["score"])
            label = f"LoRA-XS, rate {rate:g} ({seeds} seeds)"
            place.errorbar(rows["rank"], rows["score"], yerr=error, fmt="o-", capsize=3, color=colour, label=label)
        alone = one.race.summary[one.race.summary["method"] == "head-only"]
        for row in alone.to_dict("records"):
            place.axhspan(row["low"], row["high"], color=SOFT, alpha=0.25, linewidth=0)
            place.axhline(row["score"], color=SOFT, linestyle="--", label=f"the head alone ({row['seeds']} seeds)")
        ranks = sorted(set(of_kind(one.apart, "rank")["rank"]))
        place.set_xscale("log", base=2)
        place.set_xticks(ranks, [f"{rank:.0f}" for rank in ranks])
        place.minorticks_off()
        place.set_xlabel("rank r (r² numbers trained a module)")
        place.set_ylabel(f"{one.metric} (95 % over seeds)")
        place.set_title(one.title, loc="left", fontsize=10)
        place.legend(frameon=False, fontsize=9)
    return figure


def _sweep(one: Found, rate: float) -> pd.DataFrame:
    """Ranks at one rate, by rank; what one seed has only is left out."""
    rows = one.at(rate)
    chosen = (rows["label"] == ITSELF) | rows["label"].str.contains("r = ")
    return rows[chosen & (rows["seeds"] > 1)].sort_values("rank")
