"""The pieces of work that a sweep is made of, and doing one of them: tuning the learning rate of a variant, or one trial.

What does them (`executors`) may be this process or others; a piece leaves its outcome in its folder, so that it does not matter which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analyzers.compare.halving import Tuning, halvings
from analyzers.compare.opened import Opened
from analyzers.compare.runs import RunFolder
from analyzers.compare.settings import SweepSettings
from analyzers.compare.tasks import Splits
from analyzers.compare.trial_settings import Listener, TrialSettings
from loraxs_core.errors import (
    CheckpointError,
    ModelNotFound,
    RunError,
    WeightsMissing,
    WorkbenchError,
    is_out_of_memory,
)

if TYPE_CHECKING:
    from pathlib import Path

FATAL = (RunError, CheckpointError, ModelNotFound, WeightsMissing)  # these would meet every other piece as well


class NoRate(WorkbenchError):
    """A variant none of whose learning rates can be used."""


@dataclass(frozen=True)
class Work:
    """One piece. trial: what is trained (of a tuning: the trial of the first seed); position: its place among the run's trials, None for a
    tuning. rates: to try. cost: in batches read forward. after: the tuning that a trial takes its rate from."""

    trial: TrialSettings
    position: int | None
    cost: float
    rates: tuple[float, ...] = ()
    after: Work | None = None

    @property
    def is_tuning(self) -> bool:
        return self.position is None

    @property
    def name(self) -> str:
        """Unique within a run, the same in every process that reads it."""
        return f"tuning {self.trial.place}" if self.is_tuning else f"trial {self.position}"

    @property
    def title(self) -> str:
        return f"{self.trial.variant}, {'learning rate' if self.is_tuning else f'seed {self.trial.seed}'}"

    def now(self, run: RunFolder) -> TrialSettings:
        """The trial at the rate that has been found for it by now."""
        return self.trial if self.position is None or self.after is None else run.trials()[self.position]

    def folder(self, run: RunFolder) -> Path:
        return run.tuning_folder(self.trial.place) if self.is_tuning else run.trial_folder(self.now(run).id)

    def is_ready(self, run: RunFolder) -> bool:
        """Whether nothing has to be done before."""
        return self.after is None or self.after.is_done(run)

    def is_done(self, run: RunFolder) -> bool:
        if not self.is_ready(run):
            return False
        if not self.is_tuning:
            return run.result(self.now(run)) is not None
        known = Tuning.read(self.folder(run))
        return known is not None and known.chosen is not None


def pieces(settings: SweepSettings, splits: Splits) -> list[Work]:
    """Everything that a sweep does, in order; each variant's tuning stands before its first trial. Raises SettingsError where rates
    cannot be tuned on this data."""
    tunings = {trial.place: Work(trial, None, plan.cost(trial), plan.rates) for trial, plan in halvings(settings, splits)}
    found: list[Work] = []
    for position, trial in enumerate(settings.trials()):
        before = tunings.get(trial.place)
        if before is not None and trial.seed == before.trial.seed:
            found.append(before)
        found.append(Work(trial, position, trial.cost(len(splits.validation), len(splits.test)), after=before))
    return found


def perform(run: RunFolder, work: Work, opened: Opened, listener: Listener) -> Iterator[str]:
    """Does `work`; gives lines for the log. Raises what went wrong, `NoRate` where a tuning has found none."""
    # Where start-up time needs it: torch and transformers take seconds, which a run that has finished, or is refused, does not pay.
    from analyzers.compare.trial import run_trial
    from analyzers.compare.tuning import tune

    folder, trial = work.folder(run), work.now(run)
    folder.mkdir(parents=True, exist_ok=True)
    if work.is_tuning:
        found = tune(trial, work.rates, opened, folder, listener)
        yield found.sentence
        if found.chosen is None:
            raise NoRate(found.error)
        return
    (folder / "failure.json").unlink(missing_ok=True)
    record = run_trial(trial, opened, folder, listener)
    if not record:  # of a process beside the one that writes
        return
    yield f"{trial.id}: {opened.task.metric} {record['score']:.4f} in {record['seconds']:.1f} s"
    if record["remark"]:
        yield f"{trial.id}: {record['remark']}"


def sentence(error: Exception, trial: TrialSettings) -> str:
    """What went wrong with one piece, in one line."""
    if isinstance(error, WorkbenchError):
        return str(error)
    if is_out_of_memory(error):
        return f"{trial.variant} ran out of memory; use a smaller batch or fewer tokens a text."
    first = next(iter(str(error).splitlines()), "")
    return f"{trial.variant} cannot be trained on this model: {type(error).__name__}: {first}"
