"""The tables, the plots and the verdicts, from the trials that are there: `python -m benchmarks.planner.report [--results FOLDER]`.

Writes analyzers/ranks/evidence.json (what every strategy shows), docs/images/rank_evidence.svg and rank_matters.svg, and all between
the marks in docs/ranks.md. Studies that are not finished are in the table with the seeds they have, and get no verdict.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from analyzers.ranks import STRATEGIES
from benchmarks.kept_trials import read
from benchmarks.planner import pictures
from benchmarks.planner.__main__ import RESULTS
from benchmarks.planner.programme import STUDIES
from benchmarks.planner.statistics import CONFIRMATION, EXPLORATION, SEEDS, Comparison, HeadGain, comparisons, head_gains
from benchmarks.planner.tasks import TASKS
from benchmarks.planner.verdicts import LEAD, SUPPORTED, verdict

ROOT = Path(__file__).parents[2]
EVIDENCE, PAGE = ROOT / "analyzers/ranks/evidence.json", ROOT / "docs/ranks.md"
PLOTS = {"rank_evidence.svg": pictures.plans, "rank_matters.svg": pictures.matters}
IMAGES = ROOT / "docs/images"
BEGIN, END = "<!-- evidence: written by python -m benchmarks.planner.report -->", "<!-- end of evidence -->"
COLUMNS = [
    "| task | r | plan | seeds (better) | own best rates (95 %) | corrected | Holm p | equal rates (95 %) |",
    "|---|---|---|---|---|---|---|---|",
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    records = [one for file in sorted(given.results.glob("*.jsonl")) for one in read(file)]
    found, gains = comparisons(records), head_gains(records)
    EVIDENCE.write_text(evidence(found), encoding="utf-8")
    for name, drawn in PLOTS.items():
        (IMAGES / name).write_text(drawn(found), encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{written(found, gains)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(written(found, gains))


def evidence(found: Sequence[Comparison]) -> str:
    """evidence.json: a verdict and a line for every strategy, and the comparisons behind them."""
    verdicts = {}
    for name in sorted(STRATEGIES):
        if name == "uniform":
            continue
        word, line = verdict(name, found)
        verdicts[name] = {"verdict": word, "line": line}
    return json.dumps({"strategies": verdicts, "comparisons": [one.about for one in found]}, indent=1) + "\n"


def written(found: Sequence[Comparison], gains: Sequence[HeadGain]) -> str:
    """Markdown: where things stand, when ranks matter, both stages, every verdict."""
    return "\n\n".join((_now(found, gains), _matters(gains), _explored(found), _confirmed(found), _verdicts(found))) + "\n"


def _now(found: Sequence[Comparison], gains: Sequence[HeadGain]) -> str:
    words = {name: verdict(name, found)[0] for name in STRATEGIES if name != "uniform"}
    supported = [name for name, word in words.items() if word == SUPPORTED]
    leads = [one for one in found if one.lead]
    run = {one.study for one in gains}
    planned = dict.fromkeys((study.model, study.task, study.rank) for study in STUDIES)
    lines = [
        f"**Where it stands.** Supported: {', '.join(supported) or 'no strategy, so the default is uniform'}. "
        f"Leads of the exploration: {_listed(f'{one.arm} ({_place(one)})' for one in leads)}; "
        f"verdict still open: {_listed(name for name, word in words.items() if word == LEAD)}. "
        f"Not measured: {_listed(name for name, word in words.items() if word == 'not measured')}. "
        f"Planned and not run: {_listed(f'{TASKS[task][0].label} at r={rank} on {model}' for model, task, rank in planned if (model, task, rank) not in run)}."
    ]
    return "\n".join(lines)


def _listed(names) -> str:
    return ", ".join(names) or "none"


def _place(one: Comparison) -> str:
    return f"{TASKS[one.task][0].label} at r={one.rank}"


def _matters(gains: Sequence[HeadGain]) -> str:
    lines = ["**Does the adapter matter at all?** Uniform ranks against the head alone, exploration seeds, in points:", ""]
    lines += ["| model | task | taken for | r | seeds | gain over the head (95 %) |", "|---|---|---|---|---|---|"]
    for one in gains:
        lines.append(
            f"| {one.model} | {TASKS[one.task][0].label} | {TASKS[one.task][1]} | {one.rank} | {one.seeds} | {one.gain:+.1f} "
            f"({_span(one.low, one.high)}) |"
        )
    return "\n".join(
        [*lines, "", "![What uniform ranks gain over the head, and plans over uniform ranks](images/rank_matters.svg)"]
    )


def _explored(found: Sequence[Comparison]) -> str:
    own = [one for one in found if one.stage == EXPLORATION]
    family = max((one.family for one in own), default=0)
    return "\n".join(
        [
            f"**Exploration**: plans against uniform, same Σ r² within 1 %, paired by seed, in points. The family is the {family} "
            "comparisons of plans that have all their seeds and an adapter that clearly beats the head; controls and unfinished ones are "
            "shown and not counted.",
            "",
            *COLUMNS,
            *map(_row, own),
        ]
    )


def _confirmed(found: Sequence[Comparison]) -> str:
    leads = [one for one in found if one.lead]
    fresh = [one for one in found if one.stage == CONFIRMATION]
    lines = [
        f"**Confirmation**: the {len(leads)} leads on fresh seeds ({SEEDS[CONFIRMATION][0]} to {SEEDS[CONFIRMATION][-1]}), at the rates "
        f"of the exploration. The family is these {len(leads)}, whether they have run or not; one counts once all its "
        f"{len(SEEDS[CONFIRMATION])} seeds have run.",
        "",
    ]
    begun = {(*one.study, one.arm) for one in fresh}
    waiting = [f"{one.arm} on {_place(one)}" for one in leads if (*one.study, one.arm) not in begun]
    lines += [*COLUMNS, *map(_row, fresh)] if fresh else []
    return "\n".join([*lines, *(["", f"Not begun: {', '.join(waiting)}."] if waiting else [])])


def _row(one: Comparison) -> str:
    corrected = (_span(one.wide_low, one.wide_high), f"{one.holm:.2f}") if one.counted else ("–", "–")
    return (
        f"| {TASKS[one.task][0].label} | {one.rank} | {one.arm} | {one.seeds} ({one.better}) | {one.tuned:+.1f} "
        f"({_span(one.low, one.high)}) | {corrected[0]} | {corrected[1]} | {one.equal:+.1f} "
        f"({_span(one.equal_low, one.equal_high)}) |"
    )


def _verdicts(found: Sequence[Comparison]) -> str:
    lines = ["**Verdicts**", "", "| strategy | verdict | |", "|---|---|---|"]
    for name in STRATEGIES:
        if name != "uniform":
            word, line = verdict(name, found)
            lines.append(f"| {name} | {word} | {line} |")
    return "\n".join(lines)


def _span(low: float, high: float) -> str:
    return f"{low:+.1f} to {high:+.1f}" if math.isfinite(low) else "one seed"


if __name__ == "__main__":
    main()
