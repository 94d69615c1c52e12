"""The writing side of a run folder: curves, failures and the table, beside what all work in the background says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from analyzers.compare.runs.records import failure
from analyzers.compare.trial_settings import TrialSettings
from loraxs_core.background import WorkWriter
from loraxs_core.paths import atomic_file

if TYPE_CHECKING:
    import pandas as pd

METRICS = "metrics.jsonl"


class RunWriter(WorkWriter):
    """For the one process that works on a run."""

    def mend(self) -> None:
        """Closes the last line of the curves where a crash cut it."""
        metrics = self.work.path / METRICS
        if metrics.exists() and metrics.stat().st_size:
            with open(metrics, "rb") as file:
                file.seek(-1, 2)
                cut = file.read() != b"\n"
            if cut:
                self.append(METRICS, "")

    def metric(self, line: dict) -> None:
        self.append(METRICS, json.dumps(line))

    def failure(self, trial: TrialSettings, error: str) -> None:
        record = failure(trial, error)
        with atomic_file(self.work.path / "trials" / trial.id / "failure.json") as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def results(self, frame: pd.DataFrame) -> None:
        with atomic_file(self.work.path / "results.csv") as temporary:
            frame.to_csv(temporary, index=False)
