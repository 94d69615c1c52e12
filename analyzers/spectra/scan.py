"""Computes the spectra of a checkpoint: one matrix a worker, largest first, cached, cancellable, resumable.

Workers are threads, each with one BLAS thread: the kernels release the interpreter lock, and whole matrices side by side keep
cores busier than one matrix split over them. Progress counts the arithmetic each matrix needs, not matrices, so that the time
left is honest when sizes differ.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from threadpoolctl import threadpool_limits

from analyzers.spectra.artefact import LayerSpectrum, Spectra
from analyzers.spectra.cache import SpectraCache
from loraxs_core.checkpoint import Checkpoint, Weight
from loraxs_core.errors import CheckpointError, SettingsError
from loraxs_core.progress import Cancellation, Cancelled, Progress, ProgressCallback
from loraxs_core.spectrum_kernels import spectrum

TICK_SECONDS = 0.1  # how often progress is told and cancellation asked for


def scan(
    checkpoint: Checkpoint,
    *,
    weights: Iterable[Weight | str] | None = None,
    jobs: int | None = None,
    cache: bool = True,
    progress: ProgressCallback | None = None,
    cancelled: Cancelled | None = None,
) -> Spectra:
    """All singular values of the linear weights of `checkpoint`, within 1e-9 of the largest one of each.

    weights: which ones, as `Weight` or by name; every linear weight by default, tied ones once. jobs: matrices at a time, one
    core each; the cores this process may use by default. cache: read and write the user's cache, so that the second scan is
    instant and a killed one resumes. progress: told what is done about ten times a second, in the calling thread.
    cancelled: asked as often; the scan then raises Cancellation at once, and what is done stays cached.

    Raises WeightsMissing for an architecture without weights, NonFiniteWeights naming a layer that holds NaN or infinities,
    CheckpointError when a file changed since it was opened, SettingsError for jobs below 1.
    """
    started = time.monotonic()
    if jobs is not None and jobs < 1:
        raise SettingsError(f"jobs must be at least 1, not {jobs}.")
    chosen = _chosen(checkpoint, weights)
    _refuse_changed(checkpoint)
    store = SpectraCache(checkpoint) if cache else None
    found = {weight.name: store.load(weight) if store else None for weight in chosen}
    missing = [weight for weight in chosen if found[weight.name] is None]
    if missing:
        found |= _compute(checkpoint, missing, jobs or available_cores(), store, progress, cancelled)
    elif progress:
        progress(Progress(1, 1, f"all {len(chosen)} layers from the cache", started))
    layers = {name: layer for name, layer in found.items() if layer is not None}
    return Spectra(checkpoint.name, layers, time.monotonic() - started, from_cache=not missing)


def cached(checkpoint: Checkpoint) -> Spectra | None:
    """The spectra of every linear weight from the cache; None unless all of them are there."""
    if not checkpoint.has_weights or _changed(checkpoint):
        return None
    started = time.monotonic()
    store = SpectraCache(checkpoint)
    layers: dict[str, LayerSpectrum] = {}
    for weight in checkpoint.linear:
        layer = store.load(weight)
        if layer is None:
            return None
        layers[weight.name] = layer
    return Spectra(checkpoint.name, layers, time.monotonic() - started, from_cache=True)


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cost(weight: Weight) -> float:
    """Arithmetic that a weight's spectrum takes: n^2 m for the Gram matrix, 8/3 n^3 for its eigenvalues.

    The reduction's 4/3 n^3 operations count twice, because half of them run at half the speed of matrix products.
    """
    short, long = min(weight.shape), max(weight.shape)
    return float(short) ** 2 * long + 8 / 3 * float(short) ** 3


def _chosen(checkpoint: Checkpoint, weights: Iterable[Weight | str] | None) -> list[Weight]:
    """The weights to scan, each set of numbers once. Raises WeightsMissing where there are none."""
    given = checkpoint.linear if weights is None else weights
    chosen = {}
    for one in given:
        weight = checkpoint.weight(one) if isinstance(one, str) else one
        if weight.tied_to:
            weight = checkpoint.weight(weight.tied_to)
        checkpoint.entry(weight)
        chosen[weight.name] = weight
    return list(chosen.values())


def _changed(checkpoint: Checkpoint) -> str | None:
    """The name of a file that is not what it was when the checkpoint was opened."""
    for file in {id(file): file for file in checkpoint.files.values()}.values():
        try:
            status = file.path.stat()
        except OSError:
            return file.path.name
        if (status.st_size, status.st_mtime_ns) != file.stamp:
            return file.path.name
    return None


def _refuse_changed(checkpoint: Checkpoint) -> None:
    name = _changed(checkpoint)
    if name:
        raise CheckpointError(f"{name} of {checkpoint.name} changed since it was opened; open the model again.")


@dataclass
class _Task:
    """One weight on its way through a worker. fraction: how much of it is done."""

    weight: Weight
    fraction: float = 0.0


def _compute(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    jobs: int,
    store: SpectraCache | None,
    progress: ProgressCallback | None,
    cancelled: Cancelled | None,
) -> dict[str, LayerSpectrum]:
    """Runs the workers and gathers what they give; the first error, or a cancellation, stops them all."""
    started = time.monotonic()
    tasks = [_Task(weight) for weight in sorted(weights, key=cost, reverse=True)]
    waiting: queue.SimpleQueue[_Task] = queue.SimpleQueue()
    results: queue.SimpleQueue[LayerSpectrum | BaseException] = queue.SimpleQueue()
    stop = threading.Event()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        try:
            while not stop.is_set():
                task = waiting.get_nowait()
                results.put(_layer(checkpoint, task, store, stop.is_set))
        except (queue.Empty, Cancellation):
            pass
        except BaseException as error:
            results.put(error)

    # Daemons: a worker inside a long LAPACK call must not keep a cancelled program from ending.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(tasks)))]
    layers: dict[str, LayerSpectrum] = {}
    with threadpool_limits(1):
        for worker in workers:
            worker.start()
        try:
            while len(layers) < len(tasks):
                if cancelled and cancelled():
                    raise Cancellation
                try:
                    result = results.get(timeout=TICK_SECONDS)
                except queue.Empty:
                    pass
                else:
                    if isinstance(result, BaseException):
                        raise result
                    layers[result.weight.name] = result
                if progress:
                    progress(_progress(tasks, len(layers), started))
        finally:
            stop.set()
    return layers


def _layer(checkpoint: Checkpoint, task: _Task, store: SpectraCache | None, cancelled: Cancelled) -> LayerSpectrum:
    def step(fraction: float) -> None:
        task.fraction = fraction

    weight = task.weight
    result = spectrum(checkpoint.read(weight), name=weight.name, step=step, cancelled=cancelled)
    layer = LayerSpectrum(weight, result.values, result.energy, result.error)
    _refuse_changed(checkpoint)
    if store:
        store.store(layer)
    task.fraction = 1.0
    return layer


def _progress(tasks: Sequence[_Task], layers: int, started: float) -> Progress:
    done = sum(cost(task.weight) * task.fraction for task in tasks)
    read = sum(task.weight.parameters * task.fraction for task in tasks)
    total = sum(task.weight.parameters for task in tasks)
    message = f"{layers} of {len(tasks)} layers, {read / 1e6:,.0f} of {total / 1e6:,.0f} million weights"
    return Progress(done, sum(cost(task.weight) for task in tasks), message, started)
