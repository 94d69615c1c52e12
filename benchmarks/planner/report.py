"""The table, the plot and the verdicts, from the trials that are there: `python -m benchmarks.planner.report [--results FOLDER]`.

Writes analyzers/ranks/evidence.json (what every strategy shows), docs/images/rank_evidence.svg, and the tables between the marks in
docs/ranks.md. Studies that are not finished are in the table with the seeds they have, and get no verdict.
"""

from __future__ import annotations

import argparse
import html
import json
from pathlib import Path

from analyzers.ranks import STRATEGIES
from benchmarks.kept_trials import read
from benchmarks.planner.__main__ import RESULTS
from benchmarks.planner.statistics import Comparison, comparisons, verdict
from benchmarks.planner.tasks import TASKS

ROOT = Path(__file__).parents[2]
EVIDENCE, PLOT, PAGE = ROOT / "analyzers/ranks/evidence.json", ROOT / "docs/images/rank_evidence.svg", ROOT / "docs/ranks.md"
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
    """An SVG of all tuned differences with their intervals (thick) and corrected ones (thin); partial studies are hollow."""
    shown = [one for one in found if one.low > float("-inf")]
    reach = max([5.0, *(min(30.0, max(abs(one.low), abs(one.high))) for one in shown)])
    left, width, row = 330, 430, 22
    height = 60 + row * len(shown)

    def x(value: float) -> float:
        return left + width / 2 * (1 + max(-1.0, min(1.0, value / reach)))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{left + width + 20}" height="{height}" fill="#fff"/>',
        f'<line x1="{x(0):.1f}" y1="24" x2="{x(0):.1f}" y2="{height - 28}" stroke="#999"/>',
        f'<text x="{x(0):.1f}" y="16" text-anchor="middle">points against uniform ranks (own best rates)</text>',
        *(
            f'<text x="{x(mark):.1f}" y="{height - 10}" text-anchor="middle" fill="#555">{mark:+.0f}</text>'
            for mark in (-reach, -reach / 2, reach / 2, reach)
        ),
    ]
    for place, one in enumerate(shown):
        y = 40 + row * place
        label = html.escape(f"{TASKS[one.task][0].label}, r={one.rank}: {one.arm} ({one.seeds} seeds)")
        fill = "#2a6f97" if one.complete else "#fff"
        parts += [
            f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{label}</text>',
            f'<line x1="{x(one.wide_low):.1f}" y1="{y}" x2="{x(one.wide_high):.1f}" y2="{y}" stroke="#9dbfd3"/>',
            f'<line x1="{x(one.low):.1f}" y1="{y}" x2="{x(one.high):.1f}" y2="{y}" stroke="#2a6f97" stroke-width="3"/>',
            f'<circle cx="{x(one.tuned):.1f}" cy="{y}" r="4.5" fill="{fill}" stroke="#2a6f97"/>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
