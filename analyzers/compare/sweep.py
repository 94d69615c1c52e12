"""A sweep: methods (and rank plans) x learning rates x seeds on one model and one task, written to a run folder as it goes."""

from __future__ import annotations

import os
import traceback

from analyzers.compare.meter import Meter
from analyzers.compare.runs import RunFolder, State
from analyzers.compare.runs.inputs import inputs, settle_inputs
from analyzers.compare.runs.writer import RunWriter
from analyzers.compare.settings import SweepSettings
from analyzers.compare.trial_settings import Listener, TrialSettings
from analyzers.compare.work import FATAL, Opened, Work, perform, pieces, sentence
from loraxs_core.errors import RunError, is_out_of_memory
from loraxs_core.progress import Cancellation, Cancelled, ProgressCallback


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
    works = pieces(settings, opened.splits)
    meter = Meter(writer, progress, works)
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    left = Left(run, writer, meter, works, cancelled)
    while (work := left.next()) is not None:
        meter.begin(work)
        _here(left, work, opened)
    return len(run.failures())


def _open(settings: SweepSettings, writer: RunWriter, cancelled: Cancelled) -> Opened:
    """Model and data. Raises what stops the whole sweep, a plan that is not the model's among it."""
    writer.status(message=f"opening {settings.model}")
    if cancelled():
        raise Cancellation
    opened = Opened.of(settings)
    for trial in settings.trials():
        if trial.plan is not None:
            trial.rank_plan().check(opened.checkpoint)
    return opened


class Left:
    """What a sweep has left to do, and what becomes of each piece."""

    def __init__(self, run: RunFolder, writer: RunWriter, meter: Meter, works: list[Work], cancelled: Cancelled):
        self.run, self.writer, self.meter, self.cancelled = run, writer, meter, cancelled
        self.waiting: list[Work] = []
        for work in works:
            if work.is_done(run):
                meter.skip(work)
            else:
                self.waiting.append(work)

    def next(self) -> Work | None:
        """The first piece that can be done now, taken off the list; None where there is none."""
        for place, work in enumerate(self.waiting):
            if work.is_ready(self.run):
                return self.waiting.pop(place)
        return None

    def ended(self, work: Work, error: str | None = None) -> None:
        """`work` is over. error: the sentence where it failed; of a tuning it holds for all trials that wait for it."""
        if error is not None:
            hit = [work]
            if work.is_tuning:
                hit = [other for other in self.waiting if other.after is work]
                self.waiting = [other for other in self.waiting if other.after is not work]
            for other in hit:
                self._failed(other.now(self.run), error)
                if other is not work:
                    self.meter.skip(other)
        self.meter.end(work)
        self.writer.results(self.run.results())

    def _failed(self, trial: TrialSettings, error: str) -> None:
        self.run.trial_folder(trial.id).mkdir(parents=True, exist_ok=True)
        self.writer.failure(trial, error)

    def listener(self, work: Work) -> Listener:
        """Who hears of `work` in the run's own process."""
        trial = work.now(self.run)
        return Listener(
            report=lambda line: self.writer.metric({**trial.about, **line}),
            advance=lambda cost, message: self.meter.advance(work, cost, message),
            cancelled=self.cancelled,
            began=lambda step: self.writer.metric({"event": "start", "trial": trial.id, "step": step}),
            note=self.writer.log,
        )


def _here(left: Left, work: Work, opened: Opened) -> None:
    """Does `work` in this process. Raises what would meet every other piece as well."""
    trial, writer = work.now(left.run), left.writer
    try:
        for line in perform(left.run, work, opened, left.listener(work)):
            writer.log(line)
    except (Cancellation, *FATAL):
        raise
    except Exception as error:
        if isinstance(error, OSError) and not is_out_of_memory(error):
            raise writer.disk_problem(error) from error
        if left.cancelled():  # what fails after that may have failed because of it
            raise Cancellation from error
        writer.log(f"{work.name if work.is_tuning else trial.id} failed: {traceback.format_exc()}")
        left.ended(work, sentence(error, trial))
        return
    left.ended(work)
