"""The table, the plot and the verdicts, from the trials that are there: `python -m benchmarks.planner.report [--results FOLDER]`.

Writes analyzers/ranks/evidence.json (what every strategy shows), docs/images/rank_evidence.svg, and the tables between the marks in
docs/ranks.md. Studies that are not finished are in the table with the seeds they have, and get no verdict.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from analyzers.ranks import STRATEGIES
from benchmarks.drawing import Difference, forest, styled, svg
from benchmarks.kept_trials import read
from benchmarks.planner.__main__ import RESULTS
from benchmarks.planner.statistics import Comparison, comparisons, verdict
from benchmarks.planner.tasks import TASKS

ROOT = Path(__file__).parents[2]
EVIDENCE, PLOT, PAGE = ROOT / "analyzers/ranks/evidence.json", ROOT / "docs/images/rank_evidence.svg", ROOT / "docs/ranks.md"
MOST_POINTS = 30.0  # of the plot: what reaches further is cut off
BEGIN, END = "<!-- evidence: written by python -m benchmarks.planner.report -->", "<!-- end of evidence -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = comparisons([one for file in sorted(given.results.glob("*.jsonl")) for one in read(file)])
    EVIDENCE.write_text(evidence(found), encoding="utf-8")
    PLOT.write_text(plot(found), encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{tables(found)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(tables(found))


def evidence(found: list[Comparison]) -> str:
    """evidence.json: a verdict and a line for every strategy, and the comparisons behind them."""
    verdicts = {}
    for name in sorted(STRATEGIES):
        if name == "uniform":
            continue
        word, line = verdict(name, found)
        verdicts[name] = {"verdict": word, "line": line}
    return json.dumps({"strategies": verdicts, "comparisons": [one.about for one in found]}, indent=1) + "\n"


def tables(found: list[Comparison]) -> str:
    """Markdown: when ranks matter (uniform against the head), every comparison, every verdict."""
    lines = ["**Does the adapter matter at all?** Uniform ranks against the head alone, in points:", ""]
    lines += ["| model | task | kind | r | seeds | gain over the head (95 %) |", "|---|---|---|---|---|---|"]
    studies = {(one.model, one.task, one.rank): one for one in sorted(found, key=lambda one: one.seeds)}
    for (model, task, rank), one in studies.items():
        lines.append(
            f"| {model} | {TASKS[task][0].label} | {TASKS[task][1]} | {rank} | {one.seeds} | {one.head_gain:+.1f} "
            f"({_span(one.head_low, one.head_high)}) |"
        )
    lines += ["", "**Plans against uniform**, same Σ r² within 1 %, paired by seed, in points:", ""]
    lines += [
        "| task | r | plan | seeds (better) | own best rates (95 %) | corrected | Holm p | equal rates (95 %) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        lines.append(
            f"| {TASKS[one.task][0].label} | {one.rank} | {one.arm} | {one.seeds} ({one.better}) | {one.tuned:+.1f} "
            f"({_span(one.low, one.high)}) | {_span(one.wide_low, one.wide_high)} | {one.holm:.2f} | {one.equal:+.1f} "
            f"({_span(one.equal_low, one.equal_high)}) |"
        )
    lines += ["", "**Verdicts**", "", "| strategy | verdict | |", "|---|---|---|"]
    for name in STRATEGIES:
        if name != "uniform":
            word, line = verdict(name, found)
            lines.append(f"| {name} | {word} | {line} |")
    return "\n".join(lines) + "\n"


def _span(low: float, high: float) -> str:
    return "one seed" if low == float("-inf") else f"{low:+.1f} to {high:+.1f}"


def plot(found: list[Comparison]) -> str:
    """An SVG of all tuned differences with their intervals (thick) and corrected ones (thin); those without a verdict are hollow."""
    shown = [one for one in found if one.low > float("-inf")]
    reach = max([5.0, *(min(MOST_POINTS, max(abs(one.low), abs(one.high))) for one in shown)])
    panels: dict[str, list[Difference]] = {}
    for one in shown:
        row = Difference(
            f"{one.arm} ({one.seeds} seeds)",
            one.tuned,
            one.low,
            one.high,
            (one.wide_low, one.wide_high),
            hollow=not one.complete,
        )
        panels.setdefault(f"{one.model}, {TASKS[one.task][0].label}, r = {one.rank}", []).append(row)
    with styled():
        return svg(forest(list(panels.items()), "points against uniform ranks, each at its own best rate (95 %)", reach))


if __name__ == "__main__":
    main()
