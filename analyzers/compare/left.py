"""What a sweep has left to do, and what becomes of each piece, whoever does it."""

from __future__ import annotations

import contextlib
import traceback

from analyzers.compare.meter import Meter
from analyzers.compare.opened import Opened
from analyzers.compare.runs import RunFolder
from analyzers.compare.runs.writer import RunWriter
from analyzers.compare.trial_settings import Listener, TrialSettings
from analyzers.compare.work import FATAL, Work, perform, sentence
from loraxs_core.errors import is_out_of_memory
from loraxs_core.progress import Cancellation, Cancelled

BEGUN = ".begun"  # in the folder of a piece while the sweep's own process does it


class Left:
    """What a sweep has left to do, and what becomes of each piece."""

    def __init__(self, run: RunFolder, writer: RunWriter, meter: Meter, works: list[Work], cancelled: Cancelled):
        self.run, self.writer, self.meter, self.cancelled = run, writer, meter, cancelled
        self.waiting: list[Work] = []
        lost = [work for work in works if _was_lost(run, work)]
        for work in works:
            if work.is_done(run):
                meter.skip(work)
            else:
                self.waiting.append(work)
        # What ended the sweep's process (want of memory, a fault in a library) may do so again: first what has nothing to do with it.
        for work in [work for work in lost if work in self.waiting]:
            writer.log(f"{work.title} comes last: the process that did it before was lost.")
            self.waiting.remove(work)
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


def _was_lost(run: RunFolder, work: Work) -> bool:
    """Whether the process that did `work` ended without a word."""
    mark = work.folder(run) / BEGUN
    found = mark.exists()
    mark.unlink(missing_ok=True)
    return found


def here(left: Left, work: Work, opened: Opened) -> None:
    """Does `work` in this process. Raises what would meet every other piece as well."""
    trial, writer = work.now(left.run), left.writer
    mark = work.folder(left.run) / BEGUN
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
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
    finally:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)
    left.ended(work)
