"""Trains what the results page still lacks: one command, resumed where it stopped (within a trial too), one line of JSON a trial.

    python -m benchmarks.results [--only minilm_stsb] [--minutes 60] [--out docs/results] [--work FOLDER] [--list]

Trials go to OUT/ENTRY.jsonl, each the record that `loraxs compare` writes, with the CPU seconds it took and the software it ran on;
`python -m benchmarks.results.page` makes the tables and plots of docs/results.md from them. All entries take CPU hours; --minutes starts
no trial after so long.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path

from analyzers.compare.settings import TrialSettings
from benchmarks.kept_trials import append, read
from benchmarks.results.programme import ENTRIES, Entry

KEPT = Path(__file__).parents[2] / "docs" / "results"
WORK = Path(tempfile.gettempdir()) / "loraxs-results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="entries whose name begins so")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=KEPT)
    parser.add_argument("--work", type=Path, default=WORK, help="where a trial that is cut off leaves its checkpoint")
    parser.add_argument("--list", action="store_true", help="say what is done and what is not, and stop")
    given = parser.parse_args()
    entries = [entry for entry in ENTRIES if entry.name.startswith(given.only or "")]
    if not entries:
        parser.error(f"no entry begins with {given.only!r}; there are {', '.join(entry.name for entry in ENTRIES)}")
    end = time.monotonic() + 60 * given.minutes
    for entry in entries if given.list else ():
        missing = lacking(entry, given.out)
        print(f"{entry.name}: {len(missing)} of {len(list(entry.trials()))} trials are missing", *entry.commands, sep="\n    ")
    for further in () if given.list else (False, True):  # default rates of all entries come before further ones of any
        for entry in entries:
            first = {trial.id for trial in entry.sweep.trials()}
            if missing := [trial for trial in lacking(entry, given.out) if further or trial.id in first]:
                train(entry, missing, given.out, given.work / entry.name, end)


def lacking(entry: Entry, folder: Path) -> list[TrialSettings]:
    """What is not there yet; trials of other settings (steps, batch, …) do not count."""
    done = {record["trial"] for record in read(folder / f"{entry.name}.jsonl") if entry.about.items() <= record.items()}
    return [trial for trial in entry.trials() if trial.id not in done]


def train(entry: Entry, missing: list[TrialSettings], folder: Path, work: Path, end: float) -> None:
    import torch

    from analyzers.compare.opened import Opened
    from analyzers.compare.runs.inputs import inputs
    from analyzers.compare.trial import run_trial

    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    opened = Opened.of(entry.sweep)
    rests_on = inputs(opened.checkpoint, opened.task, opened.splits)
    about = entry.about | {"data": rests_on["data"], "software": rests_on["software"]}
    file = folder / f"{entry.name}.jsonl"
    for trial in missing:
        if time.monotonic() > end:
            return
        place = work / trial.id
        place.mkdir(parents=True, exist_ok=True)
        began = time.process_time()
        record = {
            **about,
            **run_trial(trial, opened, place),
            "cpu_seconds": round(time.process_time() - began, 1),
        }
        append(file, record)
        shutil.rmtree(place)
        print(f"{time.strftime('%H:%M')} {entry.name} {trial.id}: {record['score']} ({record['cpu_seconds']} s)", flush=True)


if __name__ == "__main__":
    main()
