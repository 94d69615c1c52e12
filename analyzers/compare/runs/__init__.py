"""The run folder: what a sweep leaves on disk, found again after a refresh, a crash or a restart.

listing -> folder (reading, starting) -> writer;  the process itself is `loraxs_core.background`'s

config.json         the settings, whole: the run can be repeated from it
inputs.json         the content of what it rests on: data, model files, software
metrics.jsonl       the curves, one point a line
trials/ID/adapter/  what was trained; trials/ID/result.json the record, or failure.json one sentence;
                    predictions.safetensors what it predicted for each test example
results.csv         the records as a table
status.json, process.json, log.txt, …   as `loraxs_core.background` has them
"""

from analyzers.compare.runs.adapters import TrainedAdapter, adapters_of, reported_adapters, trained_adapters
from analyzers.compare.runs.folder import RunFolder, RunStatus, start_sweep
from analyzers.compare.runs.listing import BrokenRun, Runs, find_run, list_runs, survey_runs
from loraxs_core.background import State

__all__ = [
    "BrokenRun",
    "RunFolder",
    "RunStatus",
    "Runs",
    "State",
    "TrainedAdapter",
    "adapters_of",
    "find_run",
    "list_runs",
    "start_sweep",
    "survey_runs",
    "reported_adapters",
    "trained_adapters",
]
