"""One accelerator, through PyTorch: layers of one shape in batches that fit into a share of its memory."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

from analyzers.spectra.engines.job import Job, Result, Task
from analyzers.spectra.engines.threads import side_by_side
from analyzers.spectra.layer import LayerSpectrum, NotFinite
from loraxs_core.errors import NonFiniteWeights
from loraxs_core.spectrum_torch import spectra_on_device

BATCH_BYTES = 2 << 30  # on the device, in float64


def run(job: Job) -> Generator[Result | None, None, None]:
    """Yields spectra as they are done, None in between."""
    pieces = list(batches(job.tasks))
    return side_by_side(pieces, lambda batch, stop: _scan(job, batch, stop), workers=1, results=len(job.tasks))


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


def _scan(job: Job, batch: list[Task], stop: threading.Event) -> Iterator[Result]:
    """The spectra of one batch. Where a layer of it holds NaN or infinities, its layers one by one."""

    def step(fraction: float) -> None:
        for task in batch:
            task.advance(fraction)

    try:
        results = spectra_on_device(
            [job.checkpoint.strips(task.weight) for task in batch],
            job.device,
            fast=job.accuracy.fast,
            top=job.accuracy.top,
            names=[task.weight.name for task in batch],
            step=step,
            cancelled=stop.is_set,
        )
    except NonFiniteWeights as error:
        if len(batch) == 1:
            yield NotFinite(batch[0].weight, str(error))
        else:
            for task in batch:
                yield from _scan(job, [task], stop)
        return
    for task, result in zip(batch, results, strict=True):
        yield LayerSpectrum(task.weight, result.values, result.energy, result.error).measured()
