"""A sweep: methods (and rank plans) x learning rates x seeds on one model and one task, written to a run folder as it goes."""

from __future__ import annotations

import os

from analyzers.compare.executors import elsewhere
from analyzers.compare.left import Left, here
from analyzers.compare.meter import Meter
from analyzers.compare.opened import Opened
from analyzers.compare.runs import RunFolder, State
from analyzers.compare.runs.inputs import inputs, settle_inputs
from analyzers.compare.runs.writer import RunWriter
from analyzers.compare.settings import SweepSettings
from analyzers.compare.work import pieces
from analyzers.compare.writing_room import short_of_room
from loraxs_core.config_bounds import refuse_impossible
from loraxs_core.errors import RunError
from loraxs_core.progress import Cancellation, Cancelled, ProgressCallback


def run_sweep(
    settings: SweepSettings | RunFolder,
    out: str | os.PathLike | None = None,
    progress: ProgressCallback | None = None,
    *,
    cancelled: Cancelled = lambda: False,
) -> RunFolder:
    """Runs every trial and returns the run folder; one that exists is resumed, its finished trials kept.

    out: the run's folder; a new one among the user's runs when left out. A method that fails leaves one sentence and the others
    go on. Raises what stops the whole sweep (a full disk, a model that cannot be read), Cancellation when asked to stop; the
    folder's status says so in either case.
    """
    run = settings if isinstance(settings, RunFolder) else RunFolder.create(settings, out)
    with run.working() as writer, writer.telling():
        writer.status(state=State.RUNNING, message="starting")
        total = len(run.settings.trials())
        failures = _run_pieces(run, writer, progress, lambda: cancelled() or run.cancel_requested)
        if failures == total:
            raise RunError(f"None of the {total} trials succeeded; the first said: {run.failures()[0]['error']}")
        note = f"{failures} of {total} trials failed" if failures else ""
        writer.last_word(state=State.DONE, message=note, fraction=1.0, trials_done=total, trials_total=total)
    return run


def _run_pieces(run: RunFolder, writer: RunWriter, progress: ProgressCallback | None, cancelled: Cancelled) -> int:
    """Does what is left to do; returns how many trials failed."""
    settings = run.settings
    opened = _open(settings, writer, cancelled)
    for change in settle_inputs(run.path, inputs(opened.checkpoint, opened.task, opened.splits)):
        writer.log(f"The run {change}.")
    if short := short_of_room(opened.checkpoint, opened.task, settings.sequence):
        writer.log(short)
    works = pieces(settings, opened.splits)
    meter = Meter(writer, progress, works)
    left = Left(run, writer, meter, works, cancelled)
    if settings.executor == "local" and settings.processes == 1 and (settings.workers or 1) == 1:
        if settings.threads:
            import torch  # which a process that leaves the trials to others does not wait for

            torch.set_num_threads(settings.threads)
        while (work := left.next()) is not None:
            meter.begin(work)
            here(left, work, opened)
    else:
        elsewhere(left)
    if left.waiting:
        raise RunError(f"What was found for {left.waiting[0].title} is not in {run.path} any more; resume the run.")
    return len(run.failures())


def _open(settings: SweepSettings, writer: RunWriter, cancelled: Cancelled) -> Opened:
    """Model and data. Raises what stops the whole sweep, a plan that is not the model's among it."""
    writer.status(message=f"opening {settings.model}")
    if cancelled():
        raise Cancellation
    opened = Opened.of(settings)
    refuse_impossible(opened.checkpoint.config, opened.checkpoint.name)
    for trial in settings.trials():
        if trial.plan is not None:
            trial.rank_plan().check(opened.checkpoint)
    return opened
