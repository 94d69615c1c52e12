"""The two plots of the evidence: plans against uniform ranks, and when ranks matter at all."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.drawing import Difference, forest, styled, svg
from benchmarks.planner.statistics import CONFIRMATION, EXPLORATION, SEEDS, Comparison
from benchmarks.planner.tasks import TASKS

MOST_POINTS = 30.0  # what reaches further is cut off


def plans(found: Sequence[Comparison]) -> str:
    """An SVG of all tuned differences with their intervals (thick) and, of those in a family, corrected ones (thin); those that decide
    nothing, controls too, are hollow."""
    panels: dict[str, list[Difference]] = {}
    for one in found:
        if one.seeds > 1:
            wide = (one.wide_low, one.wide_high) if one.counted else None
            row = Difference(f"{one.arm} ({one.seeds} seeds)", one.tuned, one.low, one.high, wide, hollow=not one.counted)
            panels.setdefault(_title(one), []).append(row)
    return _drawn(panels, "points against uniform ranks, each at its own best rate (95 %)")


def matters(found: Sequence[Comparison]) -> str:
    """An SVG with a panel a study: what uniform ranks gain over the head alone, what plans gain over uniform ranks beside it. Of many
    plans the one that came out best on the same seeds stands there too, as the most that choosing ranks could have gained."""
    panels: dict[str, list[Difference]] = {}
    for study in dict.fromkeys(one.study for one in found):
        own = [one for one in found if one.study == study and one.stage == EXPLORATION and one.seeds > 1 and not one.control]
        if not own:
            continue
        first = max(own, key=lambda one: one.seeds)
        alike = [one for one in own if one.seeds == first.seeds]
        best = max(alike, key=lambda one: one.tuned)
        rows = [
            Difference(
                "uniform over the head alone", first.head_gain, first.head_low, first.head_high, hollow=first.head_low <= 0
            )
        ]
        rows += [_over("role over uniform", one) for one in own if one.arm == "role"]
        if best.arm != "role":
            rows.append(_over(f"{best.arm}, the best of {len(alike)} plans, over uniform", best))
        rows += [
            _over(f"{one.arm} over uniform, on fresh seeds", one)
            for one in found
            if one.study == study and one.stage == CONFIRMATION and one.seeds > 1 and not one.control
        ]
        panels[f"{_title(first)}, {first.seeds} seeds"] = rows
    return _drawn(panels, "points (95 %)")


def _over(label: str, one: Comparison) -> Difference:
    return Difference(label, one.tuned, one.low, one.high, hollow=not one.complete)


def _title(one: Comparison) -> str:
    fresh = f", {len(SEEDS[CONFIRMATION])} fresh seeds" if one.stage == CONFIRMATION else ""
    return f"{one.model}, {TASKS[one.task][0].label}, r = {one.rank}{fresh}"


def _drawn(panels: dict[str, list[Difference]], axis: str) -> str:
    ends = [abs(end) for rows in panels.values() for row in rows for end in (row.low, row.high)]
    with styled():
        return svg(forest(list(panels.items()), axis, max([5.0, *(min(MOST_POINTS, end) for end in ends)])))
