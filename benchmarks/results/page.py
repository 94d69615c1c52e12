"""docs/results.md and its plots from the trials that are kept: `python -m benchmarks.results.page`.

Nothing on the page between its marks is written by hand: tables and verdicts are `analyzers.compare`'s own (summary, statistics), so they
say what `loraxs compare --baseline lora-xs` says of the same trials.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from analyzers.compare.statistics import alike, holm, verdict
from analyzers.compare.tasks import METRIC_LABELS, TASKS
from benchmarks.results import plots
from benchmarks.results.__main__ import KEPT
from benchmarks.results.programme import ENTRIES
from benchmarks.results.tables import ITSELF, Found, Part, leaves_out_zero

ROOT = Path(__file__).parents[2]
PAGE, IMAGES, ONCE = ROOT / "docs" / "results.md", ROOT / "docs" / "images", KEPT / "tasks.json"
BEGIN, END = "<!-- results: written by python -m benchmarks.results.page -->", "<!-- end of results -->"


def main() -> None:
    found = collected()
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{text(found)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    for name, drawing in plots.drawn(found).items():
        (IMAGES / name).write_text(drawing, encoding="utf-8")
    print(text(found))


def collected(folder: Path = KEPT) -> list[Found]:
    """Every entry that has trials."""
    return [one for one in (Found.of(entry, folder) for entry in ENTRIES) if one.records]


def text(found: list[Found]) -> str:
    """Markdown: what was run, then a section an entry, then the tasks that were run once."""
    parts = [_overview(found), _in_short(found)]
    for picture, alt in plots.PICTURES.items():
        if plots.shown(picture, found):
            parts.append(f"![{alt}](images/{picture})\n")
    parts += [_section(one) for one in found]
    return "\n".join([*parts, _once()])


def _overview(found: list[Found]) -> str:
    lines = ["| | trials kept | of | steps | seeds | CPU minutes | code |", "|---|---|---|---|---|---|---|"]
    for one in found:
        seeds = len({record["seed"] for record in one.records})
        sweep = one.entry.sweep
        lines.append(
            f"| [{one.title}](results/{one.entry.name}.jsonl) | {len(one.records)} | {one.planned} | {sweep.steps} x {sweep.batch} | {seeds} "
            f"| {one.minutes:.0f} | {', '.join(one.codes)} |"
        )
    lacking = [entry.name for entry in ENTRIES if entry.name not in {one.entry.name for one in found}]
    lines += ["", f"Not run: {', '.join(lacking)}."] if lacking else []
    return "\n".join(lines) + "\n"


def _in_short(found: list[Found]) -> str:
    """Every comparison whose interval leaves out zero, corrected for all that the page makes, and how many show nothing."""
    pairs = [(one, row) for one in found for part in (one.race, one.apart) for row in part.against.values() if row["seeds"] > 1]
    corrected = holm([row["p"] for _, row in pairs])
    seen = [(one, {**row, "p_holm": p}) for (one, row), p in zip(pairs, corrected, strict=True) if leaves_out_zero(row)]
    standing = sum(row["p_holm"] < 0.05 for _, row in seen)
    lines = [
        f"**In short.** Of {len(pairs)} comparisons with LoRA-XS over two seeds or more, {len(seen)} {'has' if len(seen) == 1 else 'have'} an interval that leaves out zero; "
        f"corrected for all {len(pairs)} of them (Holm), {standing or 'none'} of these {'stands' if standing == 1 else 'stand'}:"
    ]
    return "\n".join([*lines, "", *([f"- {one.title}: {verdict(row)}" for one, row in seen] or ["- none"])]) + "\n"


def _section(one: Found) -> str:
    rates = ", ".join(f"{rate:g}" for rate in one.rates)
    lines = [f"## {one.title}", "", "```bash", *(f"{command} --out DIR" for command in one.entry.commands), "```", ""]
    lines += [*_table("Each method at its own default rate", one, one.race), ""]
    if len(one.apart.summary) > 1:
        lines += [
            *_table(f"LoRA-XS taken apart, each at the best on validation of the rates run ({rates})", one, one.apart),
            "",
        ]
    lines += [f"- {remark}" for remark in one.remarks]
    return "\n".join(lines).rstrip() + "\n"


def _table(heading: str, one: Found, part: Part) -> list[str]:
    """The rows of `part`, each against LoRA-XS, then the verdicts."""
    lines = [
        f"**{heading}.** {one.metric}, mean of the seeds (95 %):",
        "",
        f"| | trained numbers | rate | seeds | {one.metric} | against LoRA-XS, points | above / below | Holm p | seeds for a point | energy kept |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in part.summary.to_dict("records"):
        pair = part.against.get(row["label"])
        against = ["", "", "", ""]
        if pair and pair["seeds"]:
            against = [
                _points(pair),
                f"{pair['above']} / {pair['below']}",
                "" if pd.isna(pair["p_holm"]) else f"{pair['p_holm']:.2f}",
                "" if pd.isna(pair["seeds_needed"]) else f"{pair['seeds_needed']:,.0f}",
            ]
        scored = f"{row['score']:.3f} ({row['low']:.3f} to {row['high']:.3f})" if row["seeds"] > 1 else f"{row['score']:.3f}"
        energy = "" if pd.isna(row["energy_kept"]) else f"{100 * row['energy_kept']:.1f} %"
        name = f"{row['label']}, r = {row['rank']:.0f}" if row["label"] == ITSELF else row["label"]
        cells = [name, f"{row['parameters']:,}", f"{row['learning_rate']:g}", row["seeds"], scored, *against, energy]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, "", *(f"- {sentence}" for sentence in part.verdicts)]


def _points(pair: dict) -> str:
    mean = f"{100 * pair['difference']:+.1f}"
    if alike(pair):
        return f"{mean} (each seed)"
    return f"{mean} ({100 * pair['low']:+.1f} to {100 * pair['high']:+.1f})" if pair["seeds"] > 1 else f"{mean} (one seed)"


def _once() -> str:
    """The tasks of `python -m benchmarks.decoders_on_tasks`: one seed, intervals over the test examples."""
    lines = [
        "## Every kind of task, once",
        "",
        "`python -m benchmarks.decoders_on_tasks`: one seed, a few steps, few test examples; the interval is over the test examples.",
        "[Commands and records](results/tasks.json).",
        "",
        "| task | method | metric | score (95 %) | test examples | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in json.loads(ONCE.read_text(encoding="utf-8")).items():
        for row, trial in zip(case["summary"], case["trials"], strict=True):
            lines.append(
                f"| {TASKS[name].label} | {row['label']} | {METRIC_LABELS[row['metric']]} | {row['score']:.3f} ({row['low']:.3f} to "
                f"{row['high']:.3f}) | {trial['test_examples']} | {row['seconds']:.0f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
