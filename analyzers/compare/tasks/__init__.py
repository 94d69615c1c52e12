"""Tasks to compare methods on: one small file each, found by itself. `open_task` also takes the user's own ``csv:PATH``."""

from __future__ import annotations

from analyzers.compare.tasks.base import (
    CLASSIFICATION,
    METRIC_LABELS,
    METRIC_LIMITS,
    METRICS,
    REGRESSION,
    Example,
    Splits,
    Task,
    scores,
)
from analyzers.compare.tasks.csv_file import csv_task
from loraxs_core.errors import SettingsError
from loraxs_core.registry import found

TASKS: dict[str, Task] = dict(sorted(found(__name__, "TASK").items(), key=lambda item: item[1].label.lower()))


def open_task(name: str) -> Task:
    """The task called `name`, or the one in the file of ``csv:PATH``. Raises SettingsError listing those there are."""
    if name.startswith("csv:"):
        return csv_task(name.removeprefix("csv:"))
    if name not in TASKS:
        raise SettingsError(f"Unknown task {name!r}; there are {', '.join(TASKS)}, and csv:PATH for a file of your own.")
    return TASKS[name]


__all__ = [
    "CLASSIFICATION",
    "METRIC_LABELS",
    "METRIC_LIMITS",
    "METRICS",
    "REGRESSION",
    "TASKS",
    "Example",
    "Splits",
    "Task",
    "open_task",
    "scores",
]
