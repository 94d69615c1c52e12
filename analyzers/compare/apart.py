"""A piece of a sweep in another process: `piece`, or a call of `do` on a Ray worker.

The process tells what it does in ``events.jsonl`` of the piece's folder, a JSON object a line; the sweep's own process reads along
(`Heard`) and does all the writing elsewhere in the run folder.

    {"begin": PID}  {"metric": {…}}  {"began": STEP}  {"advance": COST, "message": …}  {"log": …}  {"ended": "done" | …, "error": …}
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from analyzers.compare import together
from analyzers.compare.opened import Opened
from analyzers.compare.runs import RunFolder
from analyzers.compare.trial_settings import Listener
from analyzers.compare.work import FATAL, Work, perform, pieces, sentence
from loraxs_core.background import RELEASE_SECONDS, locked
from loraxs_core.documents import open_to_append
from loraxs_core.errors import is_out_of_memory
from loraxs_core.paths import remove_unfinished
from loraxs_core.progress import Cancellation, Cancelled

EVENTS = "events.jsonl"
DONE, FAILED, FATALLY, CANCELLED = "done", "failed", "fatal", "cancelled"
TELL_SECONDS, LOOK_SECONDS = 0.25, 0.5


def do(path: str, piece: str) -> None:
    """Does the piece called `piece` (`Work.name`) of the run at `path`, and tells how it ends."""
    run = RunFolder(path)
    opened = _opened(path)
    work = next(work for work in pieces(run.settings, opened.splits) if work.name == piece)
    if run.settings.threads:
        import torch

        torch.set_num_threads(run.settings.threads)
    folder, rank = work.folder(run), int(os.environ.get("RANK", "0")) if run.settings.processes > 1 else 0
    folder.mkdir(parents=True, exist_ok=True)
    telling = _Telling(folder / EVENTS, first=rank == 0)
    if rank:
        _perform(run, work, opened, telling)
        return
    with locked(folder, RELEASE_SECONDS, f"Another process works on {folder}."):
        remove_unfinished(folder)  # of a process that was killed while this run went on
        _perform(run, work, opened, telling)


def _perform(run: RunFolder, work: Work, opened: Opened, telling: _Telling) -> None:
    telling.say(begin=os.getpid())
    try:
        for line in perform(run, work, opened, telling.listener(_asked(run))):
            telling.say(log=line)
    except Cancellation:
        telling.end(CANCELLED)
    except FATAL as error:
        telling.end(FATALLY, str(error))
    except Exception as error:
        if isinstance(error, OSError) and not is_out_of_memory(error):
            telling.end(FATALLY, f"Cannot write in {run.path}: {error.strerror or error}.")
            return
        telling.say(log=traceback.format_exc(), always=True)
        if run.settings.processes > 1 and together.is_lost(error):
            raise  # without a word of its end: the piece is started again
        telling.end(FAILED, sentence(error, work.now(run)))
    else:
        telling.end(DONE)


@lru_cache(maxsize=1)
def _opened(path: str) -> Opened:
    """Model and data of a run, once a process, and with them the base that its trials share."""
    return Opened.of(RunFolder(path).settings)


class _Telling:
    """Writes the events. Of the processes that train one trial the first tells; the others only what goes wrong."""

    def __init__(self, path: Path, first: bool):
        self.path, self.first = path, first
        self.cost, self.last = 0.0, 0.0

    def say(self, *, always: bool = False, **line: object) -> None:
        if self.first or always:
            with open_to_append(self.path) as file:
                file.write(json.dumps(line).encode() + b"\n")

    def end(self, how: str, error: str = "") -> None:
        if self.cost:
            self.say(advance=self.cost, message="")
        self.say(ended=how, error=error, always=how != DONE)

    def advance(self, cost: float, message: str) -> None:
        self.cost += cost
        now = time.monotonic()
        if now - self.last >= TELL_SECONDS:
            self.say(advance=self.cost, message=message)
            self.cost, self.last = 0.0, now

    def listener(self, cancelled: Cancelled) -> Listener:
        return Listener(
            report=lambda line: self.say(metric=line),
            advance=self.advance,
            cancelled=cancelled,
            began=lambda step: self.say(began=step),
            note=lambda text: self.say(log=text),
        )


def _asked(run: RunFolder) -> Cancelled:
    """Whether somebody asked to stop, or removed the run. Looked up twice a second."""
    known: dict[str, float] = {"at": -LOOK_SECONDS, "stop": False}

    def asked() -> bool:
        now = time.monotonic()
        if not known["stop"] and now - known["at"] >= LOOK_SECONDS:
            known.update(at=now, stop=run.cancel_requested or not run.config_path.exists())
        return bool(known["stop"])

    return asked


class Heard:
    """The events of one piece, as far as they have not been read."""

    def __init__(self, folder: Path):
        self.path, self.position = folder / EVENTS, 0
        self.path.unlink(missing_ok=True)

    def lines(self) -> Iterator[dict]:
        """What is new; a line that is being written is left for the next time."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.position)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self.position += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
