"""How far a sweep is: the work of its trials as one progress, for its folder and for whoever called it."""

from __future__ import annotations

import time

from analyzers.compare.runs.writer import RunWriter
from analyzers.compare.trial_settings import TrialSettings
from loraxs_core.background import WRITE_EVERY_SECONDS
from loraxs_core.progress import Progress, ProgressCallback


class Meter:
    """Turns the work of the trials into status lines and progress, at most a few a second.

    total: cost of all `trials` together. What was finished by an earlier process counts as done, not as fast.
    """

    def __init__(self, writer: RunWriter, progress: ProgressCallback | None, total: float, trials: int):
        self.writer, self.progress = writer, progress
        self.total, self.trials = total, trials
        self.finished = self.skipped = self.inside = 0.0
        self.number = 0
        self.name = self.trial = ""
        self.started = time.monotonic()
        self.last = 0.0

    def skip(self, cost: float) -> None:
        """A trial that is finished already."""
        self.number += 1
        self.skipped += cost
        self.finished += cost

    def begin(self, trial: TrialSettings) -> None:
        self.number += 1
        self.inside = 0.0
        self.name = f"{trial.variant}, seed {trial.seed}"
        self.trial = trial.id
        self._show("starting", force=True)

    def advance(self, cost: float, message: str) -> None:
        self.inside += cost
        self._show(message)

    def end(self, cost: float) -> None:
        self.finished += cost
        self.inside = 0.0
        self._show("finished", force=True)

    def _show(self, message: str, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.last < WRITE_EVERY_SECONDS:
            return
        self.last = now
        done = min(self.finished + self.inside, self.total)
        new = done - self.skipped
        eta = (now - self.started) / new * (self.total - done) if new > 0 else None
        said = Progress(done, self.total, f"{self.name} ({self.number} of {self.trials}): {message}", self.started)
        self.writer.progress(
            said, force=True, eta_seconds=eta, trial=self.trial, trials_done=self.number - 1, trials_total=self.trials
        )
        if self.progress:
            self.progress(said)
