"""Scans a checkpoint: what is cached is read, the rest computed by an engine, largest first, and cached as it comes.

Progress counts the arithmetic each matrix needs, not matrices, so that the time left is honest when sizes differ.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence

from analyzers.spectra.accuracy import Accuracy
from analyzers.spectra.artefact import Spectra
from analyzers.spectra.cache import SpectraCache
from analyzers.spectra.engines import accelerator, cluster, threads
from analyzers.spectra.engines.job import TICK_SECONDS, Job, Task, changed_file, refuse_changed
from analyzers.spectra.layer import LayerSpectrum
from loraxs_core.checkpoint import Checkpoint, Weight
from loraxs_core.errors import SettingsError
from loraxs_core.progress import Cancellation, Cancelled, Progress, ProgressCallback
from loraxs_core.spectrum_torch import check_device

ENGINES = ("local", "ray")


def scan(
    checkpoint: Checkpoint,
    *,
    weights: Iterable[Weight | str] | None = None,
    parts: bool = False,
    fast: bool = False,
    top: int | None = None,
    jobs: int | None = None,
    device: str = "cpu",
    engine: str = "local",
    cache: bool = True,
    progress: ProgressCallback | None = None,
    cancelled: Cancelled | None = None,
) -> Spectra:
    """All singular values of the linear weights of `checkpoint`, within 1e-9 of the largest one of each.

    weights: which ones, as `Weight` or by name; every linear weight by default, tied ones once. parts: also the query, key and
    value (or gate and up) inside fused projections. fast: float32 arithmetic, within 1e-4. top: only this many values of each
    layer, the largest, in float32; the total energy stays exact. jobs: matrices at a time, one core each; the cores this
    process may use by default. device: ``cpu``, or an accelerator as PyTorch names it, such as ``cuda``. engine: ``local``, or
    ``ray`` for a Ray cluster that shares the file system. cache: read and write the user's cache, so that the second scan is
    instant and a killed one resumes. progress: told what is done about ten times a second, in the calling thread. cancelled:
    asked as often; the scan then raises Cancellation at once, and what is done stays cached.

    Raises WeightsMissing for an architecture without weights, NonFiniteWeights naming a layer that holds NaN or infinities,
    CheckpointError when a file changed since it was opened, SettingsError for settings that make no sense.
    """
    started = time.monotonic()
    if jobs is not None and jobs < 1:
        raise SettingsError(f"jobs must be at least 1, not {jobs}.")
    if engine not in ENGINES:
        raise SettingsError(f"Unknown engine {engine!r}; there are {', '.join(ENGINES)}.")
    accuracy = Accuracy(fast, top)
    run = _engine(engine, device)
    chosen = _chosen(checkpoint, weights, parts)
    refuse_changed(checkpoint)
    store = SpectraCache(checkpoint) if cache else None
    found = {weight.name: store.load(weight, accuracy) if store else None for weight in chosen}
    tasks = sorted((Task(weight) for weight in chosen if found[weight.name] is None), key=lambda task: -task.cost)
    if tasks:
        job = Job(checkpoint, tasks, accuracy, jobs or available_cores(), device)
        told = started
        with contextlib.closing(run(job)) as results:
            for layer in results:
                if cancelled and cancelled():
                    raise Cancellation
                if layer is not None:
                    refuse_changed(checkpoint, layer.weight)
                    found[layer.weight.name] = layer
                    if store:
                        store.store(layer, accuracy)
                # Not at every layer: adding thousands of them up each time takes longer than scanning small ones.
                if progress and time.monotonic() - told >= TICK_SECONDS:
                    progress(_progress(tasks, found, started))
                    told = time.monotonic()
        if progress:
            progress(_progress(tasks, found, started))
    elif progress:
        progress(Progress(1, 1, f"all {len(chosen)} layers from the cache", started))
    layers = {name: layer for name, layer in found.items() if layer is not None}
    return Spectra(checkpoint.name, layers, time.monotonic() - started, from_cache=not tasks)


def cached(checkpoint: Checkpoint, *, parts: bool = False) -> Spectra | None:
    """Complete spectra of every linear weight from the cache, exact ones or else fast ones; None unless all are there."""
    if not checkpoint.has_weights or changed_file(checkpoint):
        return None
    started = time.monotonic()
    store = SpectraCache(checkpoint)
    layers: dict[str, LayerSpectrum] = {}
    for weight in _chosen(checkpoint, None, parts):
        layer = store.load(weight, Accuracy(fast=True))
        if layer is None:
            return None
        layers[weight.name] = layer
    return Spectra(checkpoint.name, layers, time.monotonic() - started, from_cache=True)


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _engine(engine: str, device: str):
    """The `run` of the engine asked for. Raises SettingsError for one that does not go with `device`, or a device not there."""
    if engine == "ray":
        if device != "cpu":
            raise SettingsError("The ray engine scans on CPUs; leave the device out, or use the local engine.")
        return cluster.run
    if device != "cpu":
        check_device(device)
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


def _progress(tasks: Sequence[Task], found: dict[str, LayerSpectrum | None], started: float) -> Progress:
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
