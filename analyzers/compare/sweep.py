"""A sweep: methods (and rank plans) x learning rates x seeds on one model and one task, written to a run folder as it goes."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from analyzers.compare.meter import Meter
from analyzers.compare.runs import RunFolder, State
from analyzers.compare.runs.inputs import inputs, settle_inputs
from analyzers.compare.runs.writer import RunWriter
from analyzers.compare.settings import SweepSettings
from analyzers.compare.tasks import Splits, Task
from analyzers.compare.trial_settings import Listener, TrialSettings
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import (
    CheckpointError,
    ModelNotFound,
    RunError,
    WeightsMissing,
    WorkbenchError,
    is_out_of_memory,
)
from loraxs_core.progress import Cancellation, Cancelled, ProgressCallback
from sample_models import open_model

if TYPE_CHECKING:
    from analyzers.compare.shared_base import SharedBase

_FATAL = (RunError, CheckpointError, ModelNotFound, WeightsMissing)  # these would meet every other trial as well


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
    run = settings if isinstance(settings, RunFolder) else RunFolder.create(settings, out)
    with run.working() as writer, writer.telling():
        writer.status(state=State.RUNNING, message="starting")
        total = len(run.settings.trials())
        failures = _run_trials(run, writer, progress, lambda: cancelled() or run.cancel_requested)
        if failures == total:
            raise RunError(f"None of the {total} trials succeeded; the first said: {run.failures()[0]['error']}")
        note = f"{failures} of {total} trials failed" if failures else ""
        writer.last_word(state=State.DONE, message=note, fraction=1.0, trials_done=total, trials_total=total)
    return run


@dataclass(frozen=True)
class Opened:
    """What all trials of a run read. base: `SharedBase`, made when the first trial begins."""

    checkpoint: Checkpoint
    task: Task
    splits: Splits

    @cached_property
    def base(self) -> SharedBase:
        from analyzers.compare.shared_base import SharedBase

        return SharedBase()


def _run_trials(run: RunFolder, writer: RunWriter, progress: ProgressCallback | None, cancelled: Cancelled) -> int:
    """Runs what is left to run; returns how many trials failed."""
    settings = run.settings
    trials = settings.trials()
    opened = _open(settings, writer, cancelled)
    for change in settle_inputs(run.path, inputs(opened.checkpoint, opened.task, opened.splits)):
        writer.log(f"The run {change}.")
    costs = [trial.cost(len(opened.splits.validation), len(opened.splits.test)) for trial in trials]
    meter = Meter(writer, progress, sum(costs), len(trials))
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    for trial, cost in zip(trials, costs, strict=True):
        if run.result(trial) is not None:
            meter.skip(cost)
            continue
        meter.begin(trial)
        _one_trial(run, trial, opened, writer, meter.advance, cancelled)
        meter.end(cost)
        writer.results(run.results())
    return len(run.failures())


def _open(settings: SweepSettings, writer: RunWriter, cancelled: Cancelled) -> Opened:
    """Model and data. Raises what stops the whole sweep, a plan that is not the model's among it."""
    task = settings.check()
    writer.status(message=f"opening {settings.model}")
    if cancelled():
        raise Cancellation
    checkpoint = open_model(settings.model)
    for trial in settings.trials():
        if trial.plan is not None:
            trial.rank_plan().check(checkpoint)
    writer.status(message=f"reading {task.label}")
    return Opened(checkpoint, task, task.read(settings.data, None))


def _one_trial(
    run: RunFolder,
    trial: TrialSettings,
    opened: Opened,
    writer: RunWriter,
    advance: Callable[[float, str], None],
    cancelled: Cancelled,
) -> None:
    """Runs `trial`; one that fails leaves its sentence in failure.json. Raises what would meet every other trial as well."""
    # Where start-up time needs it: torch and transformers take seconds, which a run that has finished, or is refused, does not pay.
    from analyzers.compare.trial import run_trial

    folder = run.trial_folder(trial.id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failure.json").unlink(missing_ok=True)
    listener = Listener(
        report=lambda line: writer.metric({**trial.about, **line}),
        advance=advance,
        cancelled=cancelled,
        began=lambda step: writer.metric({"event": "start", "trial": trial.id, "step": step}),
        note=writer.log,
    )
    try:
        record = run_trial(trial, opened.checkpoint, opened.task, opened.splits, folder, listener, opened.base)
        writer.log(f"{trial.id}: {opened.task.metric} {record['score']:.4f} in {record['seconds']:.1f} s")
        if record["remark"]:
            writer.log(f"{trial.id}: {record['remark']}")
    except (Cancellation, *_FATAL):
        raise
    except Exception as error:
        if isinstance(error, OSError) and not is_out_of_memory(error):
            raise writer.disk_problem(error) from error
        if cancelled():  # what fails after that may have failed because of it
            raise Cancellation from error
        writer.failure(trial, _sentence(error, trial))
        writer.log(f"{trial.id} failed: {traceback.format_exc()}")


def _sentence(error: Exception, trial: TrialSettings) -> str:
    """What went wrong with one trial, in one line."""
    if isinstance(error, WorkbenchError):
        return str(error)
    if is_out_of_memory(error):
        return f"{trial.variant} ran out of memory; use a smaller batch or fewer tokens a text."
    first = next(iter(str(error).splitlines()), "")
    return f"{trial.variant} cannot be trained on this model: {type(error).__name__}: {first}"
