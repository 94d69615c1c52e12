"""The runs on this machine: all of them, and one by its name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from analyzers.compare.runs.folder import RunFolder
from loraxs_core.errors import RunError
from loraxs_core.paths import data_dir, user_path


def list_runs(root: str | os.PathLike | None = None) -> list[RunFolder]:
    """Every run in the user's data folder (or in `root`), newest first."""
    folder = Path(root) if root else data_dir("runs")
    runs = [RunFolder(path.parent) for path in folder.glob("*/config.json")]
    readable = []
    for run in runs:
        with contextlib.suppress(RunError):
            readable.append((run.created, run))
    return [run for _, run in sorted(readable, key=lambda pair: (pair[0], pair[1].name), reverse=True)]


def find_run(name: str) -> RunFolder:
    """The run called `name` (or in the folder of that path). Raises RunError listing the latest when there is none."""
    if (user_path(name) / "config.json").is_file():
        return RunFolder(user_path(name))
    runs = list_runs()
    for run in runs:
        if run.name == name:
            return run
    known = ", ".join(run.name for run in runs[:5])
    raise RunError(f"There is no run {name!r}; {'the latest are ' + known if known else 'there are none yet'}.")
