"""The table of a comparison's results, formatted once for the terminal and for the demo's report."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analyzers.compare import RunFolder
from analyzers.compare.statistics import SAME, verdict
from analyzers.compare.summary import adapter_size, paired_differences
from app.terminal import say
from app.units import bytes_text, count_text, percent_text
from loraxs_core.progress import seconds

RESULT_COLUMNS = (
    "method",
    "score",
    "rate",
    "trained numbers",
    "and in the head",
    "adapter",
    "training (tokens/s)",
    "SVD (share)",
    "energy kept",
    "peak memory",
)


TUNING_COLUMNS = ("method", "learning rate", "score after how many steps", "")


def summary_rows(summary: pd.DataFrame) -> list[tuple[str, ...]]:
    """The table of the race, formatted: `RESULT_COLUMNS`."""
    rows = []
    for row in summary.to_dict("records"):
        if "score" not in row or pd.isna(row["score"]):
            rows.append((row["label"], "failed", *[""] * (len(RESULT_COLUMNS) - 2)))
            continue
        rows.append(
            (
                row["label"],
                f"{row['score']:.3f}"
                + (f" ({row['low']:.3f} to {row['high']:.3f})" if row.get("interval") or row["seeds"] > 1 else ""),
                f"{row['learning_rate']:g}",
                count_text(row["parameters"]),
                count_text(row["head_parameters"]),
                bytes_text(adapter_size(row)),
                seconds(row["train_seconds"]) + (f" ({speed:,.0f})" if (speed := _number(row, "tokens_per_second")) else ""),
                f"{row['svd_seconds']:.1f} s ({percent_text(row['svd_share'])})" if row["svd_seconds"] else "",
                percent_text(energy) if (energy := _number(row, "energy_kept")) is not None else "",
                f"{row['peak_memory_bytes'] / 1e6:,.0f} MB",
            )
        )
    return rows


def _number(row: Mapping, name: str) -> float | None:
    """What runs of earlier versions and some methods do not tell."""
    value = row.get(name)
    return None if value is None or pd.isna(value) else float(value)


def paired_records(run: RunFolder, baseline: str | None) -> list[dict]:
    """Every variant against `baseline`, seed by seed, with the verdict in words; empty where none was named.

    baseline: a variant's label, or the name of its method. Raises SettingsError when no finished trial is of it.
    """
    if baseline is None:
        return []
    results = run.results()
    of_method = results.loc[results["method"] == baseline, "label"] if len(results) else results
    label = baseline if not len(of_method) or baseline in set(results["label"]) else of_method.iloc[0]
    rows = paired_differences(results, label).to_dict("records")
    return [{**row, "verdict": verdict(row)} for row in rows]


def say_paired(run: RunFolder, baseline: str | None) -> None:
    """The verdicts, one a line, with what they rest on."""
    rows = paired_records(run, baseline)
    for row in rows:
        say(row["verdict"])
        if row["seeds"] > 1:
            say(f"  above in {row['above']}, below in {row['below']} of {row['seeds']} seeds; {_needed(row)}.")
    if len(rows) > 1:
        say(f"Each interval holds by itself; p values are corrected for the {len(rows)} comparisons (Holm).")


def tuning_records(run: RunFolder) -> list[dict]:
    """Each variant's tuned learning rate: the rates tried, their scores after each round (None where one diverged), the one chosen."""
    return [
        {
            "label": one.label,
            "method": one.method,
            "chosen": one.chosen,
            "at_edge": one.at_edge,
            "metric": one.metric,
            "held_out": one.held,
            "steps": list(one.ends),
            "rates": [
                {"rate": rate, "scores": one.scores.get(rate, []), "losses": one.losses.get(rate, [])} for rate in one.rates
            ],
            "seconds": one.seconds,
            "error": one.error or None,
        }
        for one in run.tunings()
    ]


def tuning_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """Each rate that was tried, formatted: `TUNING_COLUMNS`; one that was dropped after a round has scores up to there."""
    return [
        (
            record["label"],
            f"{entry['rate']:g}",
            ", ".join(
                f"{'diverged' if score is None else format(score, '.3f')} after {step}"
                for score, step in zip(entry["scores"], record["steps"], strict=False)
            ),
            "chosen" if entry["rate"] == record["chosen"] else "",
        )
        for record in tuning_records(run)
        for entry in record["rates"]
    ]


def say_tuned(run: RunFolder) -> None:
    """The rates that were found, a line each; those that failed are among the failures, those at an edge among the remarks."""
    for one in run.tunings():
        if one.chosen is not None and not one.at_edge:
            say(one.sentence)


def _needed(row: Mapping) -> str:
    """How many seeds it would take to see one point, as far as these can tell."""
    if row["high"] - row["low"] < SAME:
        return "all differ by the same, so these seeds do not tell how many it would take to see one point"
    needed = f"{row['seeds_needed']:.0f}" if row["seeds_needed"] < float("inf") else "more than 10,000"
    return f"one point would show with {needed} seeds"
