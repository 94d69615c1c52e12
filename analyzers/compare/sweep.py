"""A sweep: methods (and rank plans) x learning rates x seeds on one model and one task, written to a run folder as it goes."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analyzers.checks import positive, whole
from analyzers.compare.tasks import Task, open_task
from analyzers.compare.trial import FORWARD, TrialSettings
from analyzers.methods import MAIN_METHODS, METHODS, method
from loraxs_core.errors import (
    CheckpointError,
    ModelNotFound,
    RunError,
    SettingsError,
    WeightsMissing,
    WorkbenchError,
)
from loraxs_core.progress import Cancellation, Cancelled, Progress, ProgressCallback

if TYPE_CHECKING:
    from analyzers.compare.runs import RunFolder
    from analyzers.plans import RankPlan

PLANNED = "lora-xs"  # the method that follows rank plans; the others keep one rank, as their users run them
_FATAL = (RunError, CheckpointError, ModelNotFound, WeightsMissing)  # these would meet every other trial as well
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class SweepSettings:
    """What is compared with what.

    model: whatever `sample_models.open_model` takes. task: a key of `TASKS`, or ``csv:PATH``. methods: keys of `METHODS`. seeds:
    how many, or which. rank: of LoRA-XS where there is no plan; ranks: method -> rank. plans: label -> `RankPlan` (or its dict):
    LoRA-XS runs once with each. learning_rates: method -> one or several; with several the one that scores best on the
    validation split is reported (`summary`). steps: optimizer steps a trial. batch: examples a step. sequence: tokens a text.
    data: a folder or file for the task, where it needs one. threads: CPU threads; None takes torch's choice.

    Raises SettingsError in one sentence for anything that cannot be run.
    """

    model: str
    task: str = "stsb"
    methods: Sequence[str] = ("head-only", *MAIN_METHODS)
    seeds: int | Sequence[int] = 1
    steps: int = 200
    batch: int = 32
    sequence: int = 128
    rank: int | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    plans: Mapping[str, RankPlan | dict] = field(default_factory=dict)
    targets: str | Sequence[str] = "paper"
    learning_rates: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    head_learning_rate: float | None = None
    evaluations: int = 5
    validation_examples: int | None = 512
    test_examples: int | None = None
    device: str = "auto"
    threads: int | None = None
    data: str | None = None

    def __post_init__(self):
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        methods = tuple(dict.fromkeys([self.methods] if isinstance(self.methods, str) else self.methods))
        if not methods:
            raise SettingsError(f"Name at least one method to compare; there are {', '.join(METHODS)}.")
        for name in (*methods, *self.ranks, *self.learning_rates):
            method(name)
        put("methods", methods)
        if isinstance(self.seeds, int):
            put("seeds", tuple(range(whole(self.seeds, "The number of seeds"))))
        else:
            put("seeds", tuple(dict.fromkeys(int(seed) for seed in self.seeds)))
            if not self.seeds or min(self.seeds) < 0:
                raise SettingsError("Give at least one seed, each 0 or more.")
        for name, what in (
            ("steps", "The number of steps"),
            ("batch", "The batch"),
            ("sequence", "The tokens a text"),
            ("evaluations", "The number of evaluations"),
        ):
            put(name, whole(getattr(self, name), what))
        for name, what in (
            ("rank", "The rank"),
            ("validation_examples", "The number of validation examples"),
            ("test_examples", "The number of test examples"),
            ("threads", "The number of threads"),
        ):
            if getattr(self, name) is not None:
                put(name, whole(getattr(self, name), what))
        put("ranks", {name: whole(rank, f"The rank of {name}") for name, rank in self.ranks.items()})
        put("plans", {str(label): _plan_dict(plan, label) for label, plan in self.plans.items()})
        if self.plans and PLANNED not in methods:
            raise SettingsError("Plans are for LoRA-XS, which is not among the methods; add lora-xs or leave the plans out.")
        rates = {}
        for name, given in self.learning_rates.items():
            values = [given] if isinstance(given, int | float) else list(given)
            if not values:
                raise SettingsError(f"Give {name} at least one learning rate.")
            rates[name] = tuple(dict.fromkeys(positive(value, f"The learning rate of {name}") for value in values))
        put("learning_rates", rates)
        if self.head_learning_rate is not None:
            put("head_learning_rate", positive(self.head_learning_rate, "The learning rate of the head"))
        put("targets", self.targets if isinstance(self.targets, str) else tuple(self.targets))
        self._refuse_shared_folders()

    def _refuse_shared_folders(self) -> None:
        """Trials whose folder names would be the same: the second would be taken for the first."""
        known: dict[str, TrialSettings] = {}
        for trial in self.trials():
            other = known.setdefault(trial.id, trial)
            if other is trial:
                continue
            if other.plan_label != trial.plan_label:
                what = f"The plans {other.plan_label!r} and {trial.plan_label!r} differ in punctuation alone; rename one."
            else:
                what = f"Two learning rates of {trial.method} are {trial.learning_rate:g} when rounded; leave one out."
            raise SettingsError(what)

    def check(self) -> Task:
        """The task, found and readable. Raises SettingsError for an unknown task or one whose data is not on this machine."""
        task = open_task(self.task)
        reason = None if self.data else task.missing()
        if reason:
            raise SettingsError(reason)
        return task

    def trials(self) -> list[TrialSettings]:
        """Every trial, all methods of the first seed first, so that a first comparison is there early."""
        head = self.head_learning_rate or METHODS["head-only"].learning_rate
        found = []
        for seed in self.seeds:
            for name in self.methods:
                chosen = METHODS[name]
                rank = self.ranks.get(name) or (self.rank if name == PLANNED else None) or chosen.default_rank
                planned = self.plans if name == PLANNED else {}
                for rate in self.learning_rates.get(name, (head if name == "head-only" else chosen.learning_rate,)):
                    common = TrialSettings(
                        method=name,
                        seed=seed,
                        learning_rate=rate,
                        head_learning_rate=rate if name == "head-only" else head,
                        steps=self.steps,
                        batch=self.batch,
                        sequence=self.sequence,
                        rank=rank if chosen.ranked else None,
                        targets=self.targets,
                        evaluations=self.evaluations,
                        validation_examples=self.validation_examples,
                        test_examples=self.test_examples,
                        device=self.device,
                    )
                    found += [
                        dataclasses.replace(common, rank=None, plan=plan, plan_label=label) for label, plan in planned.items()
                    ] or [common]
        return found

    def to_dict(self) -> dict:
        """Plain JSON values; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping) -> SweepSettings:
        """Raises SettingsError for a document that `to_dict` would not have written."""
        known = {entry.name for entry in dataclasses.fields(cls)}
        odd = sorted(set(document) - known)
        if odd or "model" not in document:
            raise SettingsError(f"These are not the settings of a sweep: {'unknown ' + odd[0] if odd else 'model is missing'}.")
        return cls(**document)


def run_sweep(
    settings: SweepSettings | RunFolder,
    out: str | os.PathLike | None = None,
    progress: ProgressCallback | None = None,
    *,
    cancelled: Cancelled = lambda: False,
) -> RunFolder:
    """Runs every trial in this process and returns the run folder; one that exists is resumed, its finished trials kept.

    out: the run's folder; a new one among the user's runs when left out. A method that fails leaves one sentence and the others
    go on. Raises what stops the whole sweep (a full disk, a model that cannot be read), Cancellation when asked to stop; the
    folder's status says so in either case.
    """
    from analyzers.compare.runs import RunFolder

    run = settings if isinstance(settings, RunFolder) else RunFolder.create(settings, out)
    with run.working() as writer:
        try:
            writer.status(state="running", message="starting")
            failures = _run_trials(run, writer, progress, lambda: cancelled() or run.cancel_requested)
            total = len(run.settings.trials())
            if failures == total:
                raise RunError(f"None of the {total} trials succeeded; the first said: {run.failures()[0]['error']}")
            note = f"{failures} of {total} trials failed" if failures else ""
            writer.last_word(state="done", message=note, fraction=1.0, trials_done=total, trials_total=total)
        except (Cancellation, KeyboardInterrupt):
            writer.last_word(state="cancelled", message="cancelled")
            raise
        except WorkbenchError as error:
            writer.last_word(state="failed", error=str(error))
            raise
        except OSError as error:
            problem = _disk_problem(error, run.path)
            writer.last_word(state="failed", error=str(problem))
            raise problem from error
        except BaseException as error:
            writer.last_word(
                state="failed", error=f"{type(error).__name__}: {error} (a bug; {run.log_path.name} has the details)."
            )
            writer.log(traceback.format_exc())
            raise
    return run


def _run_trials(run: RunFolder, writer, progress: ProgressCallback | None, cancelled: Cancelled) -> int:
    """Runs what is left to run; returns how many trials failed."""
    from analyzers.compare.trial import plan_of, run_trial
    from sample_models import open_model

    settings = run.settings
    task = settings.check()
    trials = settings.trials()
    writer.status(message=f"opening {settings.model}")
    if cancelled():
        raise Cancellation
    checkpoint = open_model(settings.model)
    for trial in trials:
        if trial.plan is not None:
            plan_of(trial).check(checkpoint)
    writer.status(message=f"reading {task.label}")
    splits = task.read(settings.data, None)
    costs = [trial_cost(trial, len(splits.validation), len(splits.test)) for trial in trials]
    meter = _Meter(writer, progress, sum(costs), len(trials))
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    for trial, cost in zip(trials, costs, strict=True):
        folder = run.trial_folder(trial.id)
        if run.result(trial.id) is not None:
            meter.skip(cost)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failure.json").unlink(missing_ok=True)
        meter.begin(trial)
        writer.metric({"event": "start", "trial": trial.id})
        try:
            record = run_trial(
                trial,
                checkpoint,
                task,
                splits,
                folder,
                report=lambda line, trial=trial: writer.metric(
                    {
                        "trial": trial.id,
                        "method": trial.method,
                        "label": trial.variant,
                        "seed": trial.seed,
                        "learning_rate": trial.learning_rate,
                        **line,
                    }
                ),
                advance=meter.advance,
                cancelled=cancelled,
            )
            writer.log(f"{trial.id}: {task.metric} {record['score']:.4f} in {record['seconds']:.1f} s")
        except (Cancellation, *_FATAL):
            raise
        except OSError as error:
            raise _disk_problem(error, run.path) from error
        except Exception as error:
            if cancelled():  # what fails after that may have failed because of it
                raise Cancellation from error
            writer.failure(trial, _sentence(error, trial))
            writer.log(f"{trial.id} failed: {traceback.format_exc()}")
        meter.end(cost)
        writer.results()
    return len(run.failures())


def trial_cost(trial: TrialSettings, validation: int, test: int) -> float:
    """Work of a trial in batches read forward, for the progress bar."""
    batch = 2 * trial.batch
    evaluated = min(validation, trial.validation_examples or validation)
    tested = min(test, trial.test_examples or test)
    return trial.training_cost + FORWARD * (trial.evaluations * -(-evaluated // batch) + -(-tested // batch))


class _Meter:
    """Turns the work of the trials into status lines and progress, at most a few a second."""

    EVERY_SECONDS = 0.5

    def __init__(self, writer, progress: ProgressCallback | None, total: float, trials: int):
        self.writer, self.progress = writer, progress
        self.total, self.trials = total, trials
        self.finished = self.skipped = self.inside = 0.0
        self.number = 0
        self.name = ""
        self.started = time.monotonic()
        self.last = 0.0

    def skip(self, cost: float) -> None:
        self.number += 1
        self.skipped += cost
        self.finished += cost

    def begin(self, trial: TrialSettings) -> None:
        self.number += 1
        self.inside = 0.0
        self.name = f"{trial.variant}, seed {trial.seed}"
        self.trial = trial.id
        self.show("starting", force=True)

    def advance(self, cost: float, message: str) -> None:
        self.inside += cost
        self.show(message)

    def end(self, cost: float) -> None:
        self.finished += cost
        self.inside = 0.0
        self.show("finished", force=True)

    def show(self, message: str, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.last < self.EVERY_SECONDS:
            return
        self.last = now
        done = min(self.finished + self.inside, self.total)
        new = done - self.skipped
        eta = (now - self.started) / new * (self.total - done) if new > 0 else None
        said = f"{self.name} ({self.number} of {self.trials}): {message}"
        self.writer.status(
            state="running", message=said, trial=self.trial, trials_done=self.number - 1, trials_total=self.trials,
            fraction=done / self.total, eta_seconds=eta,
        )  # fmt: skip
        if self.progress:
            self.progress(Progress(done, self.total, said, self.started))


def _plan_dict(plan: RankPlan | dict, label: str) -> dict:
    from analyzers.plans import RankPlan

    return (RankPlan.from_dict(plan, f"The plan {label!r}") if isinstance(plan, Mapping) else plan).to_dict()


def _sentence(error: Exception, trial: TrialSettings) -> str:
    """What went wrong with one trial, in one line."""
    if isinstance(error, WorkbenchError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"{trial.variant} ran out of memory; use a smaller batch or fewer tokens a text."
    first = next(iter(str(error).splitlines()), "")
    return f"{trial.variant} cannot be trained on this model: {type(error).__name__}: {first}"


def _disk_problem(error: OSError, path: Path) -> WorkbenchError:
    if error.errno in _DISK_FULL:
        return RunError(f"The disk is full: cannot write the run in {path}; free some space and resume it.")
    return RunError(f"Cannot write the run in {path}: {error.strerror or error}.")
