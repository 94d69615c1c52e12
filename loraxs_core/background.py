"""Work in a process of its own, described by a folder: found again, watched, stopped and resumed by whoever opens the folder.

    status.json    how it is doing: state, progress, process; replaced whole
    process.json   which process was started for it
    log.txt        what that process said
    cancel         there once somebody asked it to stop
    .lock          held by the one process that works; .reserve: disk space for its last word

`WorkFolder` reads, starts and stops; `WorkWriter` is the working process's side; `process_main` is that process. A sweep and a job
of the page are such work, so that progress, cancelled, crashed and resumed mean the same for both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from filelock import FileLock, Timeout

from loraxs_core.documents import open_to_append, read_bytes, read_object
from loraxs_core.errors import RunError, WorkbenchError, is_out_of_memory
from loraxs_core.paths import atomic_file, remove_unfinished
from loraxs_core.processes import end_children, identity, is_alive, kill_tree, memory_kills, memory_was_short, start_module
from loraxs_core.progress import Cancellation, Progress
from loraxs_core.work_status import State, Status, process_of

LOCK = ".lock"
RELEASE_SECONDS = 15  # a killed process counts as dead before the last of its threads has let go of the lock
WRITE_EVERY_SECONDS = 0.25
RESERVE_BYTES = 32_768  # given back when the disk is full, so that the last word can be written
STATUS_BYTES, LOG_BYTES = 1024**2, 4 * 1024**2  # more of either is not read
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_detached = False  # whether this process is one that `WorkFolder.start` made


class WorkFolder:
    """Work and the folder at `path` that describes it. Reading is safe while the work goes on.

    Subclasses say what `noun` they are in a sentence, and which `module` (with `arguments`) is run to do the work; that module
    ends in ``sys.exit(process_main(...))``.
    """

    noun: ClassVar[str] = "work"
    module: ClassVar[str]
    status_type: ClassVar[type[Status]] = Status
    environment: ClassVar[dict[str, str]] = {}

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def arguments(self) -> Sequence[str]:
        return [str(self.path)]

    # -- how it is doing ------------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """What status.json says, corrected by whether the process that wrote it is alive."""
        found = self._status()
        if found.is_running and not self._alive(found):
            found = self._status()  # the last word may have been written between the two looks
            if found.is_running and not self._alive(found):
                return dataclasses.replace(found, state=State.CRASHED, error=self._lost())
        return found

    def log(self, lines: int = 200) -> str:
        """The end of log.txt."""
        return "\n".join(self._lines("log.txt", LOG_BYTES)[-lines:])

    @property
    def cancel_requested(self) -> bool:
        return (self.path / "cancel").exists()

    # -- starting and stopping ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Starts (or resumes) the work as a process of its own, which outlives this one. Raises RunError when it runs already."""
        self._refuse_running()
        with locked(self.path, RELEASE_SECONDS, self._running):
            self._refuse_running()  # two may have started it at once
            try:
                (self.path / "cancel").unlink(missing_ok=True)
                # Until the process is there, it is whoever starts it that lives or dies.
                self._write("process.json", {"starter": identity(os.getpid())})
                self._write_status({"state": State.STARTING, "message": "starting", "started": time.time()})
                before = memory_kills()
                with open_to_append(self.log_path) as log:
                    child = start_module(self.module, self.arguments, log, **self.environment)
            except OSError as error:
                raise RunError(f"Cannot start the {self.noun} in {self.path}: {error.strerror or error}.") from error
            with contextlib.suppress(RunError):  # a disk that is full by now: the process will say so
                self._write("process.json", {**identity(child.pid), "memory_kills": before})
        return self

    def cancel(self, timeout: float = 15.0) -> None:
        """Asks the work to stop, and ends its process when it does not within `timeout` seconds. Nothing to one that ended."""
        status = self.status()
        if not status.is_running:
            return
        with contextlib.suppress(OSError):
            (self.path / "cancel").touch()
        known = self._process(status)
        pid = known.get("pid")
        if pid is None or pid == os.getpid():
            return
        ours = status.detached or status.state is State.STARTING
        if ours and is_alive(known):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while is_alive(known) and time.monotonic() < deadline:
            time.sleep(0.05)
        said = {"state": State.CANCELLED, "error": "", "eta_seconds": None}
        if ours and is_alive(known):
            kill_tree(pid)
            said["message"] = "cancelled; the process had to be ended"
        elif self._status().is_running and not is_alive(known):
            said["message"] = "cancelled"
        else:
            return
        with contextlib.suppress(RunError):  # on a full disk the folder says that the process ended without a word
            self._write_status({**dataclasses.asdict(status), **said})

    @contextlib.contextmanager
    def working(self) -> Iterator[WorkWriter]:
        """Claims the folder for this process while the block runs. Raises RunError when another process works on it."""
        status = self.status()
        if not _detached and status.is_running and self._process(status).get("pid") != os.getpid():
            raise RunError(self._running)  # also where its process has not claimed the folder yet
        patience = 0 if status.is_running and not _detached else RELEASE_SECONDS
        with locked(self.path, patience, self._running):
            self._sweep()
            if not _detached:  # for this process `start` did so, and a request may have come since
                with contextlib.suppress(OSError):
                    (self.path / "cancel").unlink(missing_ok=True)
                with contextlib.suppress(RunError):  # a full disk, which the first word will meet as well
                    self._write("process.json", {**identity(os.getpid()), "memory_kills": memory_kills()})
            try:
                yield self._writer()
            finally:
                if not _detached:  # this process goes on with other things: what is lost of the status later, is not its doing
                    with contextlib.suppress(OSError):
                        (self.path / "process.json").unlink(missing_ok=True)

    # -- inside ---------------------------------------------------------------------------------------------------------------

    def _lost(self) -> str:
        """What is known of a process that is gone without a word."""
        if memory_was_short(self._started().get("memory_kills")):
            why = "; the system has ended a process for want of memory since it began, which may be why"
        else:
            why = f"; {self.log_path} may say why" if self.log_path.exists() else ""
        return f"The process of this {self.noun} ended without a word{why}. It can be resumed."

    def _writer(self) -> WorkWriter:
        return WorkWriter(self)

    def _refuse_running(self) -> None:
        if self.status().is_running:
            raise RunError(self._running)

    @property
    def _running(self) -> str:
        return f"The {self.noun} {self.name} is running already."

    def _sweep(self) -> None:
        """Removes what a killed process was writing. Only whoever holds the lock may."""
        for folder in self._own_folders():
            remove_unfinished(folder)

    def _own_folders(self) -> Iterator[Path]:
        """Folders that this work alone writes to."""
        yield self.path

    def _status(self) -> Status:
        kind = self.status_type
        try:
            return kind.from_document(read_object(self.path / "status.json", STATUS_BYTES))
        except FileNotFoundError:
            return kind(State.STARTING if self._started() else State.NEW)
        except RunError as error:
            why = str(error)
        except ValueError as error:
            why = f"{self.path / 'status.json'} is damaged: {error}."
        process = {key: value for key, value in self._started().items() if key in ("pid", "process_started", "boot")}
        if is_alive(process):
            return kind(State.RUNNING, message=why, detached=True, **process)
        return kind(State.CRASHED, error=f"{why} It can be resumed.")

    def _started(self) -> dict:
        """process.json, as far as it says what it should."""
        try:
            return process_of(read_object(self.path / "process.json", STATUS_BYTES))
        except (FileNotFoundError, RunError):
            return {}

    def _process(self, status: Status) -> dict:
        if status.pid is not None:
            return {"pid": status.pid, "process_started": status.process_started, "boot": status.boot}
        return self._started()

    def _alive(self, status: Status) -> bool:
        known = self._process(status)
        return is_alive(known) or (known.get("pid") is None and is_alive(known.get("starter", {})))

    def _write_status(self, document: dict, *, durable: bool = True) -> None:
        self._write("status.json", {**document, "updated": time.time()}, durable=durable)

    def _write(self, name: str, document: dict, *, durable: bool = True) -> None:
        with atomic_file(self.path / name, durable=durable) as temporary:
            temporary.write_text(json.dumps(document), encoding="utf-8")

    def _lines(self, name: str, most: int) -> list[str]:
        """The last lines of a file, `most` bytes of it at most."""
        try:
            return read_bytes(self.path / name, most, tail=True).decode("utf-8", errors="replace").splitlines()
        except (FileNotFoundError, RunError):
            return []


@contextlib.contextmanager
def locked(folder: Path, patience: float, otherwise: str) -> Iterator[None]:
    """Holds `folder` for this process while the block runs. Raises RunError saying `otherwise` after `patience` seconds."""
    try:
        lock = FileLock(folder / LOCK, timeout=patience)
        lock.acquire()
    except Timeout:
        raise RunError(otherwise) from None
    except (OSError, NotImplementedError) as error:
        raise RunError(f"Cannot write in {folder}: {getattr(error, 'strerror', None) or error}.") from error
    try:
        yield
    finally:
        lock.release()


class WorkWriter:
    """The writing side, for the one process that works in a folder; also on a full disk."""

    def __init__(self, work: WorkFolder):
        self.work = work
        self.known: dict[str, Any] = {**identity(os.getpid()), "detached": _detached, "started": time.time()}
        self.reserve = work.path / ".reserve"
        self.last = -math.inf
        with contextlib.suppress(OSError):
            self.reserve.write_bytes(bytes(RESERVE_BYTES))

    def status(self, *, durable: bool = True, **changes: object) -> None:
        self.known.update(changes)
        if not (self.work.path / LOCK).exists():  # which this process holds; writing would make a part of the folder anew
            raise RunError(f"{self.work.path} is gone: it was removed while the {self.work.noun} went on.")
        self.work._write_status(self.known, durable=durable)

    def progress(self, progress: Progress, *, force: bool = False, **more: object) -> None:
        """Says how far it is, a few times a second at most unless by `force`. more: what else the status is to say."""
        now = time.monotonic()
        if force or progress.fraction >= 1 or now - self.last >= WRITE_EVERY_SECONDS:
            self.last = now
            said = {"message": progress.message, "fraction": progress.fraction, "eta_seconds": progress.remaining}
            self.status(durable=False, state=State.RUNNING, **{**said, **more})

    def last_word(self, **changes: object) -> None:
        """The final status, also on a full disk: the space held in reserve is given back first."""
        with contextlib.suppress(OSError):
            self.reserve.unlink(missing_ok=True)
        self.known.pop("eta_seconds", None)
        with contextlib.suppress(WorkbenchError, OSError):
            self.status(**changes)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """However the block ends early, the folder says how; raises what it raised, an OSError as a RunError in one sentence."""
        try:
            yield
        except (Cancellation, KeyboardInterrupt):
            self.last_word(state=State.CANCELLED, message="cancelled")
            raise
        except WorkbenchError as error:
            self.last_word(state=State.FAILED, error=str(error))
            raise
        except OSError as error:
            problem = self.disk_problem(error)
            self.last_word(state=State.FAILED, error=str(problem))
            raise problem from error
        except BaseException as error:
            bug = f"{type(error).__name__}: {error} (a bug; {self.work.log_path} has the details)."
            if is_out_of_memory(error):
                bug = f"There is not enough memory for this {self.work.noun}; give it more and resume it."
            self.log(traceback.format_exc())  # first: whoever reads of the bug looks there for it
            self.last_word(state=State.FAILED, error=bug)
            raise

    def disk_problem(self, error: OSError) -> RunError:
        """What a file system says, as a sentence about this folder."""
        work = self.work
        if error.errno in _DISK_FULL:
            return RunError(f"The disk is full: cannot write the {work.noun} in {work.path}; free some space and resume it.")
        return RunError(f"Cannot write the {work.noun} in {work.path}: {error.strerror or error}.")

    def log(self, text: str) -> None:
        with contextlib.suppress(OSError):  # what cannot be logged must not stop the work
            self.append("log.txt", f"{datetime.now():%H:%M:%S} {text}")

    def append(self, name: str, line: str) -> None:
        with open_to_append(self.work.path / name) as file:
            file.write(f"{line}\n".encode())


def process_main(work: Callable[[], object]) -> int:
    """The whole of a process that `WorkFolder.start` made. Returns 0, 2 for an error in one sentence, 130 when cancelled."""
    global _detached
    _detached = True
    signal.signal(signal.SIGTERM, _stop)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        work()
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 2
    except Cancellation:
        return 130
    finally:
        end_children()
    return 0


def _stop(*_: object) -> None:
    """Once: what cleans up after the first request must not be interrupted by a second."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Cancellation
