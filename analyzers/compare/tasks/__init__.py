"""Tasks to compare methods on: one small file each, found by itself. `open_task` also takes the user's own ``csv:PATH``."""

from __future__ import annotations

import importlib
import pkgutil

from analyzers.compare.tasks.base import CLASSIFICATION, METRIC_LABELS, METRIC_LIMITS, REGRESSION, Example, Splits, Task, scores
from loraxs_core.errors import SettingsError


def _discovered() -> dict[str, Task]:
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    tasks = [module.TASK for module in modules if hasattr(module, "TASK")]
    return {task.name: task for task in sorted(tasks, key=lambda task: task.label.lower())}


TASKS: dict[str, Task] = _discovered()


def open_task(name: str) -> Task:
    """The task called `name`, or the one in the file of ``csv:PATH``. Raises SettingsError listing those there are."""
    if name.startswith("csv:"):
        from analyzers.compare.tasks.csv_file import csv_task

        return csv_task(name.removeprefix("csv:"))
    if name not in TASKS:
        raise SettingsError(f"Unknown task {name!r}; there are {', '.join(TASKS)}, and csv:PATH for a file of your own.")
    return TASKS[name]


__all__ = [
    "CLASSIFICATION",
    "METRIC_LABELS",
    "METRIC_LIMITS",
    "REGRESSION",
    "TASKS",
    "Example",
    "Splits",
    "Task",
    "open_task",
    "scores",
]
