"""What paired trials say of every strategy, as `python -m benchmarks.planner.report` wrote it, and the strategy that follows from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("evidence.json")
BASELINE = "uniform"
SUPPORTED = "supported"


@dataclass(frozen=True)
class Evidence:
    """verdict: ``supported``, ``mixed``, ``lead``, ``not confirmed``, ``loses``, ``nothing shown``, ``no verdict`` (seeds missing, or an
    adapter that does not beat the head) or ``not measured``, as `benchmarks.planner.verdicts` defines them. line: one sentence with the
    figures."""

    verdict: str
    line: str


NONE = Evidence("not measured", "No paired trial of this program has been run with it yet.")


@cache
def _file() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


def measured(strategy: str) -> Evidence:
    """The evidence for the strategy called `strategy`; one of the user's own has none."""
    found = _file()["strategies"].get(strategy)
    if strategy == BASELINE:
        return Evidence("baseline", f"The baseline of all paired trials; {_best()}.")
    return Evidence(found["verdict"], found["line"]) if found else NONE


def recommended() -> str:
    """The strategy that the evidence supports, uniform where it supports none: what plans are made by unless another is asked for."""
    return next((name for name, one in _file()["strategies"].items() if one["verdict"] == SUPPORTED), BASELINE)


def comparisons() -> list[dict]:
    """Every paired comparison behind the verdicts, as `benchmarks.planner.statistics.Comparison.about` gives them."""
    return list(_file()["comparisons"])


def _best() -> str:
    best = recommended()
    return "no plan beats it after correction" if best == BASELINE else f"{best} beats it after correction"
