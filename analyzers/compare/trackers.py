"""Trackers that Trainer tells of a training: a run of theirs for each trial, also where one process trains several, or where one fails."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# What each says of a run that is open in this process, and what ends it. TensorBoard has none: its files lie in a folder a trial.
OPEN: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    "wandb": (lambda module: module.run, lambda module: _end_wandb(module)),
    "mlflow": (lambda module: module.active_run(), lambda module: module.end_run()),
    "trackio": (lambda module: module.context_vars.current_run.get(), lambda module: module.finish()),
}
FOLDERS = {"wandb": "WANDB_DIR"}  # where it writes, unless its user has said so


@contextlib.contextmanager
def a_run_each(names: Sequence[str], folder: Path) -> Iterator[None]:
    """While the block runs a trial is trained: runs that `names` open for it end with it, so that the next one has its own. A run that was
    open before is its user's, and stays open. folder: for what they write to disk."""
    before = {name for name in names if _is_open(name)}
    own = {FOLDERS[name]: str(folder) for name in names if name in FOLDERS and FOLDERS[name] not in os.environ}
    if own:
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(own)
    try:
        yield
    finally:
        for name in names:
            if name not in before and _is_open(name):
                OPEN[name][1](sys.modules[name])
        for name in own:
            os.environ.pop(name, None)


def _end_wandb(module: Any) -> None:
    module.finish()
    module.teardown()  # else the next run is written where the first one was


def _is_open(name: str) -> bool:
    """Whether a run of it is open here; not where it has not been imported, or keeps that elsewhere in another version."""
    module = sys.modules.get(name)
    if module is None or name not in OPEN:
        return False
    with contextlib.suppress(AttributeError):
        return OPEN[name][0](module) is not None
    return False
