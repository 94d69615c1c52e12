"""Threads of this process, a matrix each, with one BLAS thread a worker.

The kernels let go of the interpreter lock (`loraxs_core.openblas`), and whole matrices side by side keep cores busier than one
matrix split over them.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

from threadpoolctl import threadpool_limits

from analyzers.spectra.engines.job import TICK_SECONDS, Job, Task
from analyzers.spectra.layer import LayerSpectrum
from loraxs_core.progress import Cancellation


def run(job: Job) -> Iterator[LayerSpectrum | None]:
    """Yields spectra as they are done, None in between. The first error of a worker is raised here and stops the others."""
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    # Short: where layers are small, the workers would be done long before their results are, and progress would be a tale.
    results: queue.Queue[LayerSpectrum | BaseException] = queue.Queue(2 * job.jobs)
    stop = threading.Event()
    for task in job.tasks:
        waiting.put(task)

    def work() -> None:
        try:
            while not stop.is_set():
                hand_over(waiting.get_nowait().run(job.checkpoint, job.accuracy, stop.is_set))
        except (queue.Empty, Cancellation):
            pass
        except BaseException as error:
            hand_over(error)

    def hand_over(result: LayerSpectrum | BaseException) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return results.put(result, timeout=TICK_SECONDS)

    # Daemons: a worker inside a long LAPACK call must not keep a cancelled program from ending.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(job.jobs, len(job.tasks)))]
    with threadpool_limits(1):
        for worker in workers:
            worker.start()
        try:
            done = 0
            while done < len(job.tasks):
                try:
                    result = results.get(timeout=TICK_SECONDS)
                except queue.Empty:
                    yield None
                    continue
                if isinstance(result, BaseException):
                    raise result
                done += 1
                yield result
        finally:
            stop.set()
