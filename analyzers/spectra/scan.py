"""Scans a checkpoint: what is cached is read, the rest computed by an engine, largest first, and cached as it comes.

Progress counts the arithmetic each matrix needs, not matrices, so that the time left is honest when sizes differ.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from analyzers.spectra.accuracy import Accuracy
from analyzers.spectra.artefact import Spectra
from analyzers.spectra.cache import SpectraCache
from analyzers.spectra.engines import accelerator, cluster, threads
from analyzers.spectra.engines.job import TICK_SECONDS, Job, Result, Task, changed_file, refuse_changed
from analyzers.spectra.layer import LayerSpectrum, NotFinite
from analyzers.spectra.settings import ScanSettings
from loraxs_core.checkpoint import Checkpoint, Weight
from loraxs_core.errors import NonFiniteWeights
from loraxs_core.progress import Cancellation, Cancelled, Progress, ProgressCallback
from loraxs_core.spectrum_torch import check_device


def scan(
    checkpoint: Checkpoint,
    settings: ScanSettings | None = None,
    *,
    weights: Iterable[Weight | str] | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Cancelled | None = None,
    **changes: Any,
) -> Spectra:
    """All singular values of the linear weights of `checkpoint`, within 1e-9 of the largest one of each.

    >>> from sample_models import open_model
    >>> scan(open_model("minilm"), top=8)["encoder.layer.0.output.dense"].energy_at(8)  # doctest: +SKIP
    0.13696658223685418

    settings, changes: a `ScanSettings`, and fields of it to change, such as ``top=8``. weights: which ones, as `Weight` or by name;
    every linear weight by default, tied ones once. progress: told what is done about ten times a second, in the calling thread.
    cancelled: asked as often; the scan then raises Cancellation at once, and what is done stays cached.

    A layer that holds NaN or infinities has no spectrum and is listed in `Spectra.not_finite`; the others are scanned.

    Raises WeightsMissing for an architecture without weights, NonFiniteWeights when no layer asked for is finite, CheckpointError
    when a file changed since it was opened, SettingsError for settings that make no sense.
    """
    started = time.monotonic()
    settings = replace(settings or ScanSettings(), **changes)
    run = _engine(settings)
    chosen = _chosen(checkpoint, weights, settings.parts)
    refuse_changed(checkpoint)
    store = SpectraCache(checkpoint) if settings.cache else None
    found = {weight.name: store.load(weight, settings.accuracy) if store else None for weight in chosen}
    tasks = sorted((Task(weight) for weight in chosen if found[weight.name] is None), key=lambda task: -task.cost)
    if tasks:
        job = Job(checkpoint, tasks, settings.accuracy, settings.jobs or available_cores(), settings.device)
        told = started
        for result in _results(run(job), cancelled):
            if result is not None:
                refuse_changed(checkpoint, result.weight)
                found[result.weight.name] = result
                if store:
                    store.store(result, settings.accuracy)
            # Not at every layer: adding thousands of them up each time takes longer than scanning small ones.
            if progress and time.monotonic() - told >= TICK_SECONDS:
                progress(_progress(tasks, found, started))
                told = time.monotonic()
        if progress:
            progress(_progress(tasks, found, started))
    elif progress:
        progress(Progress(1, 1, f"all {len(chosen)} layers from the cache", started))
    spectra = _spectra(checkpoint, found, started, from_cache=not tasks)
    if spectra.not_finite and not spectra.layers:
        raise NonFiniteWeights(next(iter(spectra.not_finite.values())))
    return spectra


def _results(running: Generator[Result | None, None, None], cancelled: Cancelled | None) -> Iterator[Result | None]:
    """What an engine yields, until `cancelled` says so: then the engine is ended, and Cancellation raised."""
    with contextlib.closing(running):
        for result in running:
            if cancelled and cancelled():
                raise Cancellation
            yield result


def _spectra(checkpoint: Checkpoint, found: Mapping[str, Result | None], started: float, *, from_cache: bool) -> Spectra:
    layers = {name: one for name, one in found.items() if isinstance(one, LayerSpectrum)}
    not_finite = {name: one.reason for name, one in found.items() if isinstance(one, NotFinite)}
    return Spectra(checkpoint.name, layers, time.monotonic() - started, from_cache, not_finite)


def cached(checkpoint: Checkpoint, *, parts: bool = False) -> Spectra | None:
    """Complete spectra of every linear weight from the cache, exact ones or else fast ones; None unless all are there."""
    if not checkpoint.has_weights or changed_file(checkpoint):
        return None
    started = time.monotonic()
    store = SpectraCache(checkpoint)
    found: dict[str, Result] = {}
    for weight in _chosen(checkpoint, None, parts):
        known = store.load(weight, Accuracy(fast=True))
        if known is None:
            return None
        found[weight.name] = known
    return _spectra(checkpoint, found, started, from_cache=True)


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _engine(settings: ScanSettings) -> Callable[[Job], Generator[Result | None, None, None]]:
    """The `run` of the engine asked for. Raises SettingsError for a device that is not there."""
    if settings.engine == "ray":
        return cluster.run
    if settings.device != "cpu":
        check_device(settings.device)
        return accelerator.run
    return threads.run


def _chosen(checkpoint: Checkpoint, weights: Iterable[Weight | str] | None, parts: bool) -> list[Weight]:
    """The weights to scan, each set of numbers once. Raises WeightsMissing where there are none."""
    chosen: dict[str, Weight] = {}
    for one in checkpoint.linear if weights is None else weights:
        weight = checkpoint.weight(one) if isinstance(one, str) else one
        if weight.tied_to:
            weight = checkpoint.weight(weight.tied_to)
        checkpoint.strips(weight)
        chosen[weight.name] = weight
        if parts:
            chosen |= {part.name: part for part in checkpoint.parts(weight)}
    return list(chosen.values())


def _progress(tasks: Sequence[Task], found: Mapping[str, Result | None], started: float) -> Progress:
    for task in tasks:
        if found[task.weight.name] is not None:
            task.fraction = 1.0
    layers = sum(task.fraction == 1.0 for task in tasks)
    read = sum(task.nbytes * task.fraction for task in tasks)
    message = f"{layers} of {len(tasks)} layers, {gigabytes(read)} of {gigabytes(sum(task.nbytes for task in tasks))}"
    return Progress(sum(task.cost * task.fraction for task in tasks), sum(task.cost for task in tasks), message, started)


def gigabytes(count: float) -> str:
    """Bytes as ``3.1 GB``, or ``42 MB`` below a gigabyte."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
