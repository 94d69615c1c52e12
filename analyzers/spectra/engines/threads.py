"""Threads of this process, a matrix each, with one BLAS thread a worker.

The kernels let go of the interpreter lock (`loraxs_core.openblas`), and whole matrices side by side keep cores busier than one
matrix split over them.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TypeVar

from threadpoolctl import threadpool_limits

from analyzers.spectra.engines.job import TICK_SECONDS, Job, Result, Task
from loraxs_core.progress import Cancellation

Piece = TypeVar("Piece")


def run(job: Job) -> Generator[Result | None, None, None]:
    """Yields spectra as they are done, None in between. The first error of a worker is raised here and stops the others."""

    def scan(task: Task, stop: threading.Event) -> Iterator[Result]:
        yield task.run(job.checkpoint, job.accuracy, stop.is_set)

    with threadpool_limits(1):
        yield from side_by_side(job.tasks, scan, workers=job.jobs, results=len(job.tasks))


def side_by_side(
    pieces: Sequence[Piece], scan: Callable[[Piece, threading.Event], Iterable[Result]], *, workers: int, results: int
) -> Generator[Result | None, None, None]:
    """What `scan` gives for each of `pieces`, as it comes, and None every tenth of a second in between; `results` of them in all.

    scan is told by an event when to stop, which the end of this generator sets. Its first error is raised here.
    """
    waiting: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    # Short: where layers are small, the workers would be done long before their results are, and progress would be a tale.
    done: queue.Queue[Result | BaseException] = queue.Queue(2 * workers)
    stop = threading.Event()
    for piece in pieces:
        waiting.put(piece)

    def work() -> None:
        try:
            while not stop.is_set():
                for result in scan(waiting.get_nowait(), stop):
                    hand_over(result)
        except (queue.Empty, Cancellation):
            pass
        except BaseException as error:
            hand_over(error)

    def hand_over(result: Result | BaseException) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return done.put(result, timeout=TICK_SECONDS)

    try:
        for _ in range(min(workers, len(pieces))):
            # Daemons: a worker inside a long LAPACK call must not keep a cancelled program from ending.
            threading.Thread(target=work, daemon=True).start()
        told = 0
        while told < results:
            try:
                result = done.get(timeout=TICK_SECONDS)
            except queue.Empty:
                yield None
                continue
            if isinstance(result, BaseException):
                raise result
            told += 1
            yield result
    finally:
        stop.set()
