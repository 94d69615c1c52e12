"""Pieces of a sweep done by other processes: several at a time on this machine or on a Ray cluster, or one at a time by the processes of
an ``accelerate launch``. All run `apart.do`, whose events are read here; what they leave and how they are resumed is the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from analyzers.compare.apart import CANCELLED, DONE, FATALLY, Heard, do
from analyzers.compare.left import Left
from analyzers.compare.side_by_side import Workers
from analyzers.compare.work import Work
from loraxs_core.documents import open_to_append
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.processes import how_ended, identity, kill_tree, memory_kills, start_module
from loraxs_core.progress import Cancellation
from loraxs_core.ray_cluster import join_or_start

RETRIES = 3  # of a piece whose process died; a trial goes on from its checkpoint
TICK_SECONDS = 0.1
GRACE_SECONDS = 2.0  # for processes that were asked to stop
LAUNCHER, PIECE = "analyzers.compare.launcher", "analyzers.compare.piece"


class Handle(Protocol):
    """A piece that some other process does."""

    def over(self) -> bool:
        """Whether the process has ended."""

    def lost(self) -> str:
        """How the process ended without a word, once it is over: a clause that begins with a verb."""

    def ended(self, well: bool) -> None:
        """The piece has said how it ended."""

    def stop(self) -> None:
        """Ends the process."""


@dataclass(frozen=True)
class Source:
    """Where processes come from. start: gives a piece to one. most: pieces at a time. starts: how often a piece whose process died is
    started, the first time included. close: when nothing is left."""

    start: Callable[[Work], Handle]
    most: int
    starts: int
    close: Callable[[], None] = lambda: None


@dataclass
class Running:
    """One piece on its way. starts: how often its process was started."""

    work: Work
    handle: Handle
    heard: Heard
    starts: int = 1
    ending: dict = field(default_factory=dict)


def elsewhere(left: Left) -> None:
    """Does everything that is left in other processes. Raises what would meet every piece, Cancellation when asked to stop."""
    settings = left.run.settings
    if settings.executor != "local":
        source = _on_cluster(left)
    else:
        source = _launched(left) if settings.processes > 1 else _side_by_side(left)
    running: list[Running] = []
    try:
        while True:
            if left.cancelled():
                raise Cancellation
            while len(running) < source.most and (work := left.next()) is not None:
                left.meter.begin(work)
                folder = work.folder(left.run)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "failure.json").unlink(missing_ok=True)
                heard = Heard(folder)
                running.append(Running(work, source.start(work), heard))
            if not running:
                return
            for one in list(running):
                if _settled(left, one, source):
                    running.remove(one)
            time.sleep(TICK_SECONDS)
    finally:
        _stop(left, running)
        source.close()


def _settled(left: Left, one: Running, source: Source) -> bool:
    """Passes on what a piece has said, and says whether it is over."""
    over = one.handle.over()  # looked at first: what it said before that has been written
    _hear(left, one)
    if one.ending:
        error = str(one.ending.get("error", ""))
        if one.ending["ended"] == FATALLY:
            raise RunError(error)
        if one.ending["ended"] == CANCELLED:
            raise Cancellation
        one.handle.ended(one.ending["ended"] == DONE)
        one.heard.forget()
        left.ended(one.work, None if one.ending["ended"] == DONE else error)
        return True
    if not over:
        return False
    if one.starts < source.starts:
        left.writer.log(f"The process of {one.work.title} ended without a word; it is started again. It {one.handle.lost()}.")
        one.starts, one.handle = one.starts + 1, source.start(one.work)
        return False
    one.heard.forget()
    left.ended(one.work, _given_up(left, one))
    return True


def _given_up(left: Left, one: Running) -> str:
    times = f", {one.starts} times" if one.starts > 1 else ""
    last = "The last" if one.starts > 1 else "It"
    return (
        f"{one.work.title}: its process ended without a word{times}. {last} {one.handle.lost()}. {left.run.log_path} may say more; if memory is "
        "short, use a smaller batch, fewer tokens a text or fewer --workers."
    )


def _hear(left: Left, one: Running) -> None:
    listener = left.listener(one.work)
    for event in one.heard.lines():
        if "begin" in event:
            left.meter.again(one.work)
        elif "metric" in event:
            listener.report(event["metric"])
        elif "began" in event:
            listener.began(event["began"])
        elif "advance" in event:
            listener.advance(event["advance"], event["message"])
        elif "log" in event:
            listener.note(event["log"])
        elif "ended" in event:
            one.ending = one.ending or event


def _stop(left: Left, running: list[Running]) -> None:
    """Lets what still runs stop by itself, then ends it."""
    if not running:
        return
    with contextlib.suppress(OSError):
        (left.run.path / "cancel").touch()
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        while time.monotonic() < deadline and not all(one.handle.over() for one in running):
            time.sleep(TICK_SECONDS)
    finally:  # also where a second Ctrl-C cuts the patience short
        for one in running:
            one.handle.stop()
            one.heard.forget()


def _side_by_side(left: Left) -> Source:
    workers = Workers(left)
    return Source(workers.start, left.run.settings.workers or 1, RETRIES, workers.close)


# -- accelerate launch ----------------------------------------------------------------------------------------------------------------


@dataclass
class Launched:
    process: subprocess.Popen
    memory_kills: int | None = field(default_factory=memory_kills)

    def over(self) -> bool:
        return self.process.poll() is not None

    def lost(self) -> str:
        return f"ended {how_ended(self.process.returncode, self.memory_kills)}"

    def ended(self, well: bool) -> None:
        if not well and not self.over():
            self.stop()  # processes beside it that still wait for it

    def stop(self) -> None:
        kill_tree(self.process.pid)


def _launched(left: Left) -> Source:
    settings, parent = left.run.settings, json.dumps(identity(os.getpid()))
    options = ["--num_processes", str(settings.processes), "--num_machines", "1", "--main_process_port", "0"]
    # --multi_gpu means several processes, GPUs or not.
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu"]

    def start(work: Work) -> Handle:
        with open_to_append(left.run.log_path) as log:
            arguments = [parent, *options, "-m", PIECE, str(left.run.path), work.name, parent]
            # The ranks are started without Python's safe path by the launcher itself.
            return Launched(start_module(LAUNCHER, arguments, log, PYTHONSAFEPATH="1", TQDM_DISABLE="1"))

    return Source(start, 1, RETRIES)


# -- Ray ------------------------------------------------------------------------------------------------------------------------------


@dataclass
class OnCluster:
    ray: Any
    reference: Any
    error: str = ""

    def over(self) -> bool:
        ready, _ = self.ray.wait([self.reference], num_returns=1, timeout=0)
        return bool(ready)

    def lost(self) -> str:
        try:
            self.ray.get(self.reference)
        except self.ray.exceptions.RayError as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            return f"was given up by the Ray cluster after {RETRIES} more tries: {first.rstrip('.')}"
        return "was lost by the Ray cluster"

    def ended(self, well: bool) -> None:
        if not well and not self.over():
            self.stop()

    def stop(self) -> None:
        self.ray.cancel(self.reference, force=True)


def _on_cluster(left: Left) -> Source:
    try:
        import ray
    except ImportError as error:
        raise SettingsError(
            "Running trials on a Ray cluster needs Ray; install it with: pip install 'loraxs-workbench[cluster]'."
        ) from error
    settings = left.run.settings
    each = settings.threads or 1
    join_or_start(ray, (settings.workers or max(1, (os.cpu_count() or 1) // each)) * each)
    there = ray.cluster_resources()
    gpus = 1 if settings.device == "cuda" or (settings.device == "auto" and there.get("GPU", 0) >= 1) else 0
    most = settings.workers or max(1, int(there.get("GPU" if gpus else "CPU", 1) // (1 if gpus else each)))
    remote = ray.remote(num_cpus=each, num_gpus=gpus, max_retries=RETRIES)(do)

    def start(work: Work) -> Handle:
        return OnCluster(ray, remote.remote(str(left.run.path), work.name))

    return Source(start, most, 1)  # a worker that dies is Ray's to replace
