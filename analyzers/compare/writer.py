"""The writing side of a run folder, also on a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import time
from datetime import datetime
from typing import TYPE_CHECKING

from analyzers.compare.processes import process_started
from loraxs_core.errors import WorkbenchError
from loraxs_core.paths import atomic_file

if TYPE_CHECKING:
    from analyzers.compare.runs import RunFolder
    from analyzers.compare.trial import TrialSettings

RESERVE_BYTES = 32_768  # given back when the disk is full, so that the last word can be written


class RunWriter:
    """The writing side, for the one process that works on a run."""

    def __init__(self, run: RunFolder):
        self.run = run
        detached = bool(os.environ.get("LORAXS_WORKER"))
        self.known = {
            "pid": os.getpid(),
            "process_started": process_started(os.getpid()),
            "detached": detached,
            "started": time.time(),
        }
        self.reserve = run.path / ".reserve"
        with contextlib.suppress(OSError):
            self.reserve.write_bytes(bytes(RESERVE_BYTES))
        metrics = run.path / "metrics.jsonl"
        if metrics.exists() and metrics.stat().st_size and not metrics.read_bytes().endswith(b"\n"):
            self._append("metrics.jsonl", "")  # a crash cut the last line: close it

    def status(self, **changes: object) -> None:
        self.known.update(changes)
        self.run._write_status(self.known)

    def last_word(self, **changes: object) -> None:
        """The final status, also on a full disk: the space held in reserve is given back first."""
        self.reserve.unlink(missing_ok=True)
        self.known.pop("eta_seconds", None)
        with contextlib.suppress(WorkbenchError, OSError):
            self.status(**changes)

    def metric(self, line: dict) -> None:
        self._append("metrics.jsonl", json.dumps(line))

    def log(self, text: str) -> None:
        with contextlib.suppress(OSError):  # what cannot be logged must not stop the run
            self._append("log.txt", f"{datetime.now():%H:%M:%S} {text}")

    def failure(self, trial: TrialSettings, error: str) -> None:
        record = {
            "trial": trial.id,
            "method": trial.method,
            "label": trial.variant,
            "plan": trial.plan_label or None,
            "rank": trial.rank,
            "seed": trial.seed,
            "learning_rate": trial.learning_rate,
            "state": "failed",
            "error": error,
        }
        with atomic_file(self.run.trial_folder(trial.id) / "failure.json") as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def results(self) -> None:
        frame = self.run.results()
        with atomic_file(self.run.path / "results.csv") as temporary:
            frame.to_csv(temporary, index=False)

    def _append(self, name: str, line: str) -> None:
        with open(self.run.path / name, "a", encoding="utf-8") as file:
            file.write(line + "\n")
