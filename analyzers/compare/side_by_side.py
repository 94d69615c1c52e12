"""Pieces of a sweep side by side on this machine: processes that do one piece after the other, each with the base that it has loaded."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import IO, cast

from analyzers.compare.left import Left
from analyzers.compare.work import Work
from loraxs_core.documents import open_to_append
from loraxs_core.processes import how_ended, identity, kill_tree, memory_kills, start_module

WORKER = "analyzers.compare.piece"


@dataclass
class Worker:
    """A process that does one piece after the other (`analyzers.compare.piece`), and keeps the base that it has loaded."""

    process: subprocess.Popen
    idle: list[Worker]
    memory_kills: int | None = field(default_factory=memory_kills)

    def over(self) -> bool:
        return self.process.poll() is not None

    def lost(self) -> str:
        return f"ended {how_ended(self.process.returncode, self.memory_kills)}"

    def ended(self, well: bool) -> None:
        if well and not self.over():
            self.idle.append(self)
        else:
            self.stop()

    def stop(self) -> None:
        kill_tree(self.process.pid)
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def give(self, work: Work) -> None:
        """Raises OSError where the process is gone."""
        pipe = cast("IO[bytes]", self.process.stdin)
        pipe.write(work.name.encode() + b"\n")
        pipe.flush()


@dataclass
class Workers:
    """Processes of `left`'s run, each begun when a piece finds none that is idle."""

    left: Left
    idle: list[Worker] = field(default_factory=list)

    def start(self, work: Work) -> Worker:
        while self.idle:
            worker = self.idle.pop()
            with contextlib.suppress(OSError):
                worker.give(work)
                return worker
            worker.stop()
        worker = self._begun()
        worker.give(work)
        return worker

    def _begun(self) -> Worker:
        run = self.left.run
        arguments = [str(run.path), "-", json.dumps(identity(os.getpid()))]
        threads = {"OMP_NUM_THREADS": str(run.settings.threads)} if run.settings.threads else {}
        with open_to_append(run.log_path) as log:
            return Worker(start_module(WORKER, arguments, log, stdin=subprocess.PIPE, TQDM_DISABLE="1", **threads), self.idle)

    def close(self) -> None:
        """Ends the processes that wait for more."""
        for worker in self.idle:
            worker.stop()
        self.idle.clear()
