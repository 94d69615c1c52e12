"""What the kept trials of one entry say: each method at its default rate, LoRA-XS taken apart, everything paired by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from analyzers.compare.statistics import alike, verdict
from analyzers.compare.summary import paired_differences, summarise
from analyzers.compare.tasks import METRIC_LABELS, open_task
from analyzers.methods import METHODS
from benchmarks.kept_trials import read
from benchmarks.results.programme import Entry

ITSELF = METHODS["lora-xs"].label


@dataclass(frozen=True)
class Part:
    """One table. summary: `summarise`; against: label -> its row of `paired_differences` with the verdict in words."""

    summary: pd.DataFrame
    against: dict[str, dict]

    @classmethod
    def of(cls, results: pd.DataFrame) -> Part:
        rows = paired_differences(results, ITSELF).to_dict("records") if ITSELF in set(results.get("label", ())) else []
        return cls(summarise(results), {row["label"]: {**row, "verdict": verdict(row)} for row in rows})

    @property
    def verdicts(self) -> list[str]:
        return [row["verdict"] for row in self.against.values()]


def leaves_out_zero(row: Mapping) -> bool:
    """Whether a row of `Part.against` is of several seeds whose interval shows a difference."""
    return row["seeds"] > 1 and not alike(row) and not row["low"] <= 0 <= row["high"]


@dataclass(frozen=True)
class Found:
    """An entry with the trials that are there."""

    entry: Entry
    records: tuple[dict, ...]

    @classmethod
    def of(cls, entry: Entry, folder: Path) -> Found:
        known = {trial.id for trial in entry.trials()}
        kept = [one for one in read(folder / f"{entry.name}.jsonl") if entry.about.items() <= one.items()]
        return cls(entry, tuple({one["trial"]: one for one in kept if one["trial"] in known}.values()))  # each once

    @property
    def title(self) -> str:
        return f"{self.entry.sweep.model} on {self.task.label}"

    @property
    def task(self):
        return open_task(self.entry.sweep.task)

    @property
    def metric(self) -> str:
        return METRIC_LABELS[self.task.metric]

    @property
    def planned(self) -> int:
        return len(list(self.entry.trials()))

    @property
    def minutes(self) -> float:
        """CPU minutes of the trials kept."""
        return sum(one["cpu_seconds"] for one in self.records) / 60

    @property
    def codes(self) -> list[str]:
        """Digests of the program's code that the trials were made by, in the order of the trials."""
        return list(dict.fromkeys(one["software"]["code"][:6] for one in self.records if "software" in one))

    @cached_property
    def race(self) -> Part:
        """The methods as they are, each at its own default rate."""
        own = {trial.id for trial in self.entry.sweep.trials() if not trial.note}
        return Part.of(self._frame(one for one in self.records if one["trial"] in own))

    @cached_property
    def apart(self) -> Part:
        """LoRA-XS and its ablations, each at its own best of the rates that were run."""
        return Part.of(self._frame(one for one in self.records if one["method"] == "lora-xs"))

    @property
    def rates(self) -> list[float]:
        """Of LoRA-XS, that have run."""
        return sorted({one["learning_rate"] for one in self.records if one["method"] == "lora-xs"})

    def at(self, rate: float) -> pd.DataFrame:
        """`summarise` of LoRA-XS and its ablations at one rate."""
        return summarise(
            self._frame(one for one in self.records if one["method"] == "lora-xs" and one["learning_rate"] == rate)
        )

    @property
    def remarks(self) -> list[str]:
        """What the data and single trials made the program remark on."""
        said = [one["data_remark"] for one in self.records if one["data_remark"]]
        told = [f"{one['remark'].rstrip('.')} (seed {one['seed']})." for one in self.records if one["remark"]]
        return list(dict.fromkeys([*said, *told]))

    @staticmethod
    def _frame(records: Iterator[dict]) -> pd.DataFrame:
        return pd.DataFrame(list(records))


def of_kind(part: Part, kind: str) -> pd.DataFrame:
    """Rows of `part` that an ablation made, the method itself among them: ``rank`` or ``basis``."""
    word = {"rank": "r = ", "basis": "vectors"}[kind]
    labels = part.summary["label"]
    return part.summary[(labels == ITSELF) | labels.str.contains(word)]
