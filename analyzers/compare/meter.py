"""How far a sweep is: the work of its pieces as one progress, for its folder and for whoever called it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from analyzers.compare.runs.writer import RunWriter
from analyzers.compare.work import Work
from loraxs_core.background import WRITE_EVERY_SECONDS
from loraxs_core.progress import Progress, ProgressCallback


class Meter:
    """Turns the pieces of a sweep into status lines and progress, at most a few a second. Several may be done at a time.

    What was finished by an earlier process counts as done, not as fast. The time left is reckoned from the end of the first step on: what
    comes before it (reading data and model, a first step that warms up) comes once.
    """

    def __init__(self, writer: RunWriter, progress: ProgressCallback | None, works: Sequence[Work]):
        self.writer, self.progress = writer, progress
        self.total = sum(work.cost for work in works)
        self.trials = sum(not work.is_tuning for work in works)
        self.finished = 0.0
        self.inside: dict[str, float] = {}
        self.done = 0  # trials
        self.started = time.monotonic()
        self.warm: tuple[float, float] | None = None  # when the first step had ended, and what was done by then
        self.last = 0.0

    def skip(self, work: Work) -> None:
        """A piece that is finished already."""
        self.done += not work.is_tuning
        self.finished += work.cost

    def begin(self, work: Work) -> None:
        self.inside[work.name] = 0.0
        self._show(work, "starting", force=True)

    def again(self, work: Work) -> None:
        """A piece that begins in another process, or once more."""
        self.inside[work.name] = 0.0

    def advance(self, work: Work, cost: float, message: str) -> None:
        self.inside[work.name] = self.inside.get(work.name, 0.0) + cost
        if self.warm is None and cost > 0:
            self.warm = time.monotonic(), self._done
        self._show(work, message)

    def end(self, work: Work) -> None:
        self.finished += work.cost
        self.inside.pop(work.name, None)
        self.done += not work.is_tuning
        self._show(work, "finished", force=True)

    @property
    def _done(self) -> float:
        return min(self.finished + sum(self.inside.values()), self.total)

    def _left(self, now: float) -> float | None:
        """Seconds until the end; None before a second step was seen."""
        since, before = self.warm or (now, self._done)
        new = self._done - before
        return (now - since) / new * (self.total - self._done) if new > 0 else None

    def _show(self, work: Work, message: str, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.last < WRITE_EVERY_SECONDS:
            return
        self.last = now
        done, eta = self._done, self._left(now)
        number = min(self.done + (work.name in self.inside), self.trials)
        said = Progress(done, self.total, f"{work.title} ({number} of {self.trials}): {message}", self.started)
        self.writer.progress(
            said, force=True, eta_seconds=eta, trial=work.trial.id, trials_done=self.done, trials_total=self.trials
        )
        if self.progress:
            self.progress(said)
