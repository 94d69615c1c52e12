"""How many trials at a time on this machine, where nothing says so.

Trials of one thread each, side by side, are done sooner than one after the other with all threads: four of MiniLM on two cores in 227 s
against 259 s, with 436 against 504 s of processor time (docs/compare.md). The choice is kept in the run's configuration, because the
number of threads decides how sums are rounded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from importlib.metadata import PackageNotFoundError, version

import psutil

from analyzers.compare.settings import SweepSettings
from loraxs_core.errors import WorkbenchError
from sample_models import open_model

WORTH_EXAMPLES = 6_000  # trained on in all trials together; fewer take less time than starting processes
RUNTIME_BYTES, COPIES = 1024**3, 4  # of a process: Python and its libraries; copies of the model that training may hold
SHARE = 0.5  # of the memory that is free


def spread(settings: SweepSettings) -> SweepSettings:
    """`settings` with the trials at a time and the threads of each, where neither is said and several at a time pay on this machine.

    Only for a CPU, and not where OMP_NUM_THREADS chooses the threads. Memory: every process holds the model by itself.
    """
    said = settings.workers is not None or settings.threads is not None or "OMP_NUM_THREADS" in os.environ
    if said or settings.executor != "local" or settings.processes > 1:
        return settings
    cores, trials = _cores(), settings.trials()
    most = min(cores, len(trials))
    if most < 2 or sum(trial.steps * trial.batch for trial in trials) < WORTH_EXAMPLES or _on_gpu(settings.device):
        return settings
    try:
        parameters = open_model(settings.model).parameters
    except (WorkbenchError, OSError):
        return settings  # the run will say what is wrong
    each = RUNTIME_BYTES + COPIES * 4 * parameters
    workers = min(most, int(SHARE * psutil.virtual_memory().available // each))
    return dataclasses.replace(settings, workers=workers, threads=cores // workers) if workers > 1 else settings


def spread_as(settings: SweepSettings, known: SweepSettings) -> SweepSettings:
    """`settings` with the trials at a time and threads that `known`, the same comparison, was begun with, where it says none."""
    if settings.workers is None and settings.threads is None:
        return dataclasses.replace(settings, workers=known.workers, threads=known.threads)
    return settings


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_gpu(device: str) -> bool:
    if device != "auto":
        return device != "cpu"
    with contextlib.suppress(PackageNotFoundError):
        if version("torch").endswith("+cpu"):  # a build without CUDA; importing it to ask takes seconds
            return False
    import torch

    return torch.cuda.is_available()
