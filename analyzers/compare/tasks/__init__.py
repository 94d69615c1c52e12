"""Tasks to compare methods on: one small file each, found by itself. `open_task` also takes data of the user's own."""

from __future__ import annotations

from collections.abc import Mapping

from analyzers.compare.tasks.base import Definition, Example, Splits, Task
from analyzers.compare.tasks.metrics import (
    CAUSAL,
    CLASSIFICATION,
    METRIC_LABELS,
    METRIC_LIMITS,
    METRICS,
    REGRESSION,
    lower_is_better,
    mean_loss,
    scores,
)
from analyzers.compare.tasks.own import own_source, own_task, task_name
from loraxs_core.errors import SettingsError
from loraxs_core.registry import found

TASKS: dict[str, Task] = dict(sorted(found(__name__, "TASK").items(), key=lambda item: (item[1].group, item[1].label.lower())))


def open_task(name: str, columns: Mapping[str, str] | None = None) -> Task:
    """The task called `name`, or the one in the data of ``data:SOURCE`` (a file, a folder, a hub id) or ``csv:PATH``; a bare path will do.

    columns: which column is what, where the data is the user's own: see `own_task`. Raises SettingsError listing those there are.
    """
    name = task_name(name, TASKS)
    source = own_source(name)
    if source is not None:
        return own_task(name, source, columns or {})
    if name not in TASKS:
        raise SettingsError(
            f"Unknown task {name!r}; there are {', '.join(TASKS)}, and data:SOURCE or csv:PATH for data of your own, or its path alone."
        )
    if columns:
        raise SettingsError(f"{TASKS[name].label} knows its columns; only data of your own takes {', '.join(sorted(columns))}.")
    return TASKS[name]


__all__ = [
    "CAUSAL",
    "CLASSIFICATION",
    "METRIC_LABELS",
    "METRIC_LIMITS",
    "METRICS",
    "REGRESSION",
    "TASKS",
    "Definition",
    "Example",
    "Splits",
    "Task",
    "lower_is_better",
    "mean_loss",
    "open_task",
    "own_source",
    "scores",
    "task_name",
]
