"""Race methods and rank plans on a task: tasks, trials, sweeps, and the folders they leave.

`start_sweep` runs a sweep as a process of its own; `run_sweep` runs it here. Importing this package is cheap: torch and
transformers are imported when a trial starts.
"""

from analyzers.compare.runs import RunFolder, RunStatus, find_run, list_runs, start_sweep
from analyzers.compare.sweep import SweepSettings, run_sweep
from analyzers.compare.tasks import TASKS, Task, open_task
from analyzers.compare.trial import TrialSettings

__all__ = [
    "TASKS",
    "RunFolder",
    "RunStatus",
    "SweepSettings",
    "Task",
    "TrialSettings",
    "find_run",
    "list_runs",
    "open_task",
    "run_sweep",
    "start_sweep",
]
