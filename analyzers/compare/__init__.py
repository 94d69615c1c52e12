"""Race methods and rank plans on a task: tasks, trials, sweeps, and the folders they leave.

    settings -> runs (the folder) -> sweep -> trial -> {base_and_head, adapter, examples, training}; results -> summary

`start_sweep` runs a sweep as a process of its own; `run_sweep` runs it here. Importing this package is cheap: torch and
transformers are imported when a trial starts.
"""

from analyzers.compare.runs import (
    BrokenRun,
    RunFolder,
    Runs,
    RunStatus,
    State,
    TrainedAdapter,
    adapters_of,
    find_run,
    list_runs,
    reported_adapters,
    start_sweep,
    survey_runs,
    trained_adapters,
)
from analyzers.compare.settings import SweepSettings
from analyzers.compare.sweep import run_sweep
from analyzers.compare.tasks import TASKS, Task, open_task
from analyzers.compare.tasks.kept import keep_data
from analyzers.compare.tasks.preview import Preview, preview, spoken_columns
from analyzers.compare.trial_settings import TrialSettings

__all__ = [
    "TASKS",
    "BrokenRun",
    "Preview",
    "RunFolder",
    "RunStatus",
    "Runs",
    "State",
    "SweepSettings",
    "Task",
    "TrainedAdapter",
    "TrialSettings",
    "adapters_of",
    "find_run",
    "keep_data",
    "list_runs",
    "open_task",
    "preview",
    "reported_adapters",
    "run_sweep",
    "spoken_columns",
    "start_sweep",
    "survey_runs",
    "trained_adapters",
]
