"""One accelerator, through PyTorch: layers of one shape in batches that fit into a share of its memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from analyzers.spectra.engines.job import TICK_SECONDS, Job, Task
from analyzers.spectra.layer import LayerSpectrum
from loraxs_core.progress import Cancellation
from loraxs_core.spectrum_torch import spectra_on_device

BATCH_BYTES = 2 << 30  # on the device, in float64


def run(job: Job) -> Iterator[LayerSpectrum | None]:
    """Yields spectra as they are done, None in between."""
    results: queue.SimpleQueue[LayerSpectrum | BaseException] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        try:
            for batch in batches(job.tasks):
                for layer in _scan(job, batch, stop):
                    results.put(layer)
        except Cancellation:
            pass
        except BaseException as error:
            results.put(error)

    threading.Thread(target=work, daemon=True).start()
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


def batches(tasks: list[Task]) -> Iterator[list[Task]]:
    """Tasks of one shape together, in their order, as many as `BATCH_BYTES` hold; at least one."""
    by_shape: dict[tuple[int, int], list[Task]] = {}
    for task in tasks:
        by_shape.setdefault(task.weight.shape, []).append(task)
    for (out, into), alike in by_shape.items():
        each = 8 * (2 * out * into + 2 * min(out, into) ** 2)
        size = max(1, BATCH_BYTES // each)
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _scan(job: Job, batch: list[Task], stop: threading.Event) -> Iterator[LayerSpectrum]:
    def step(fraction: float) -> None:
        for task in batch:
            task.advance(fraction)

    results = spectra_on_device(
        [job.checkpoint.strips(task.weight) for task in batch],
        job.device,
        fast=job.accuracy.fast,
        top=job.accuracy.top,
        names=[task.weight.name for task in batch],
        step=step,
        cancelled=stop.is_set,
    )
    for task, result in zip(batch, results, strict=True):
        yield LayerSpectrum(task.weight, result.values, result.energy, result.error).measured()
