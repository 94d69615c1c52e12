"""The runs on this machine: all of them, and one by its name. What is wrong with one run never hides another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from analyzers.compare.runs.folder import RunFolder
from loraxs_core.errors import RunError, WorkbenchError
from loraxs_core.paths import data_dir, user_path


@dataclass(frozen=True)
class BrokenRun:
    """A folder that was a run and cannot be read as one; reason: one sentence."""

    path: Path
    reason: str

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Runs:
    """sound: those that can be read, newest first. broken: those that cannot, by name."""

    sound: list[RunFolder]
    broken: list[BrokenRun]


def survey_runs(root: str | os.PathLike | None = None) -> Runs:
    """Every run in the user's data folder (or in `root`). Only configurations are read, each within bounds."""
    folder = Path(root) if root else data_dir("runs")
    dated, broken = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not os.path.lexists(path / "config.json"):
            continue
        try:
            run = RunFolder(path)
            _ = run.settings
            dated.append((run.created, run.name, run))
        except (WorkbenchError, OSError) as error:
            broken.append(BrokenRun(path, str(error)))
    return Runs([run for *_, run in sorted(dated, key=lambda entry: entry[:2], reverse=True)], broken)


def list_runs(root: str | os.PathLike | None = None) -> list[RunFolder]:
    """The runs that can be read, newest first; `survey_runs` names the others."""
    return survey_runs(root).sound


def find_run(name: str) -> RunFolder:
    """The run called `name` (or in the folder of that path). Raises RunError listing the latest when there is none."""
    if os.path.lexists(user_path(name) / "config.json"):
        return RunFolder(user_path(name))
    runs = survey_runs()
    for run in runs.sound:
        if run.name == name:
            return run
    for broken in runs.broken:
        if broken.name == name:
            raise RunError(broken.reason)
    known = ", ".join(run.name for run in runs.sound[:5])
    raise RunError(f"There is no run {name!r}; {'the latest are ' + known if known else 'there are none yet'}.")
