"""What a comparison will take before it is started, by what trials took on this machine: earlier ones, or a few steps measured first.

Only trials with the same model, task, batch and tokens a text count, on the same device; where this code of the program has
run some of them, the earlier ones do not count. A trial takes its steps, its evaluations, the
test examples it is scored on, and what comes once (loading, the singular vectors, saving). The first step, which warms up, is left out
of the measured ones; a run's own start (opening model and data) is added once. Where trials run side by side, what they took beside one
another counts, and the time is that of the process which is done last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from analyzers.compare.runs import RunFolder, list_runs
from analyzers.compare.runs.folder import absolute
from analyzers.compare.runs.inputs import CODE, software
from analyzers.compare.settings import SweepSettings
from analyzers.compare.spread import spread
from analyzers.compare.trial_settings import TrialSettings
from loraxs_core.errors import WorkbenchError
from loraxs_core.paths import data_dir

if TYPE_CHECKING:
    import pandas as pd

STEPS = 8  # measured before a first run
SCORED = 64  # test examples of it
LOOKED_AT = 30  # runs, the newest first
SAME = (
    "model",
    "task",
    "data",
    "columns",
    "batch",
    "sequence",
    "device",
    "threads",
    "workers",
    "processes",
    "executor",
    "targets",
)
TUNED = 2.0  # a variant whose rate is looked for takes at most so many times its trials


@dataclass(frozen=True)
class Pace:
    """What trials of one variant took. step, evaluation, example: seconds each; once: seconds beside them; tests: examples of the whole
    test split; peak, files: bytes of memory and of what one trial leaves."""

    step: float
    evaluation: float
    example: float
    once: float
    tests: int
    peak: float
    files: float

    def seconds(self, trial: TrialSettings) -> float:
        """Of one trial."""
        scored = min(self.tests, trial.test_examples or self.tests)
        return self.once + trial.steps * self.step + trial.evaluations * self.evaluation + scored * self.example


@dataclass(frozen=True)
class Forecast:
    """trials: how many. seconds: until the last of them is done; peak: bytes of memory, of all processes at a time; files: bytes left on
    disk; None where nothing comparable has been measured. guessed: variants that took nothing here yet, and are reckoned as the slowest that did."""

    trials: int
    seconds: float | None = None
    peak: float | None = None
    files: float | None = None
    guessed: tuple[str, ...] = ()


def forecast(settings: SweepSettings, runs: Sequence[RunFolder] | None = None) -> Forecast:
    """What `settings` will take. runs: to go by, the newest first; those on this machine and what `measure` left when left out."""
    settings = spread(absolute(settings))
    trials = settings.trials()
    if runs is None:
        runs = [*measurements(settings), *list_runs()]
    alike = [run for run in runs[:LOOKED_AT] if _alike(run, settings)]
    known: dict[str, Pace] = {}
    alike = [run for run in alike if _is_of_this_code(run)] or alike
    for run in alike:
        known = paces(run) | known
    if not known:
        return Forecast(len(trials))
    by_method = {place.partition("_")[0]: pace for place, pace in known.items()}
    slowest = max(known.values(), key=lambda pace: pace.seconds(trials[0]))
    begun = min((start for run in alike if (start := _start_seconds(run)) is not None), default=0.0)
    taken: list[float] = []
    peak = files = 0.0
    guessed: dict[str, None] = {}
    tuned = {trial.place for trial, _ in settings.to_tune()}
    for trial in trials:
        pace = known.get(trial.place) or by_method.get(trial.place.partition("_")[0])
        if pace is None:
            guessed[trial.variant] = None
            pace = slowest
        taken.append(pace.seconds(trial) * (TUNED if trial.place in tuned else 1.0))
        peak, files = max(peak, pace.peak), files + pace.files
    beside = min(len(trials), settings.workers or 1)
    return Forecast(len(trials), begun + _until_done(taken, beside), peak * beside, files, tuple(guessed))


def measurement(settings: SweepSettings) -> SweepSettings:
    """A few steps of each method of `settings`, one evaluation, a few test examples."""
    return dataclasses.replace(
        settings, seeds=(0,), steps=STEPS, evaluations=1, test_examples=SCORED,
        learning_rates={name: settings.rates(name)[:1] for name in settings.learning_rates},
        tune_lr=False, report_to=(),
    )  # fmt: skip


def measure(settings: SweepSettings) -> RunFolder:
    """Starts `measurement` as a process of its own, in a folder that is found again; one that is there already is taken.

    Raises what starting a run raises.
    """
    run = RunFolder.create(measurement(spread(settings)), _folder(settings))
    status = run.status()
    return run if status.is_running or status.state == "done" else run.start()


def measurements(settings: SweepSettings) -> list[RunFolder]:
    """What was measured for exactly these methods, model and data; the run may be going on."""
    folder = _folder(settings)
    try:
        return [RunFolder(folder)] if (folder / "config.json").is_file() else []
    except WorkbenchError:
        return []


def _folder(settings: SweepSettings) -> Path:
    words = json.dumps([measurement(spread(settings)).to_dict(), software()[CODE]], sort_keys=True, default=str)
    return data_dir("measured") / hashlib.sha256(words.encode()).hexdigest()[:16]


def _alike(run: RunFolder, settings: SweepSettings) -> bool:
    try:
        theirs = run.settings
    except WorkbenchError:
        return False
    return all(_plain(getattr(theirs, name)) == _plain(getattr(settings, name)) for name in SAME) and (
        theirs.validation_examples == settings.validation_examples
    )


def _is_of_this_code(run: RunFolder) -> bool:
    try:
        return run.config["software"].get(CODE) == software()[CODE]
    except (WorkbenchError, KeyError, AttributeError):
        return False


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, list | tuple) else value


def paces(run: RunFolder) -> dict[str, Pace]:
    """`TrialSettings.place` -> what its trials took in `run`, of those that finished in one go with their curves kept."""
    stamps = [file.stat().st_mtime_ns for name in ("results.csv", "metrics.jsonl") if (file := run.path / name).is_file()]
    return _paces(run.path, tuple(stamps))


@lru_cache(maxsize=256)
def _paces(path: Path, stamps: tuple[int, ...]) -> dict[str, Pace]:
    try:
        run = RunFolder(path)
        curves, trials = run.metrics(), run.trials()
    except WorkbenchError:
        return {}
    found: dict[str, list[Pace]] = {}
    for trial in trials:
        record = run.result(trial)
        part = curves[curves["trial"] == trial.id]
        if record is None or not part["seconds"].notna().any():
            continue
        if pace := _pace(trial, record, part):
            found.setdefault(trial.place, []).append(pace)
    # Of several trials the middle one: the first has loaded the base and read the texts for all.
    return {place: _middle(each) for place, each in found.items()}


def _pace(trial: TrialSettings, record: dict, curve: pd.DataFrame) -> Pace | None:
    points = curve.dropna(subset=["seconds"])
    scored = record.get("test_examples") or 0
    evaluations = int((points["kind"] == "eval").sum())
    step = step_seconds(points) or record["train_seconds"] / trial.steps
    evaluated = max(0.0, float(points["seconds"].max()) - record["train_seconds"])
    tested = record.get("test_seconds") or 0.0
    once = max(0.0, record["seconds"] - float(points["seconds"].max()) - tested)
    if not scored:
        return None
    if record.get("evaluates_once"):  # however often it is asked
        once, evaluated = once + evaluated, 0.0
    return Pace(
        step,
        evaluated / max(1, evaluations),
        tested / scored,
        once,
        record.get("overlap_of") or scored,
        record["peak_memory_bytes"],
        record["file_bytes"],
    )


def step_seconds(points: pd.DataFrame) -> float | None:
    """Seconds a step by the points of one training curve: from the first of them on, evaluations between two left out.

    points: kind, step, seconds. None where there are not two.
    """
    seconds, steps = 0.0, 0
    before: tuple[float, int] | None = None
    for kind, step, at in zip(points["kind"], points["step"], points["seconds"], strict=True):
        if kind != "train":
            before = (at, step)  # what an evaluation took lies before this point
            continue
        if before is not None and step > before[1]:
            seconds, steps = seconds + at - before[0], steps + step - before[1]
        before = (at, step)
    return seconds / steps if steps else None


def _middle(each: list[Pace]) -> Pace:
    return Pace(*(statistics.median(getattr(pace, entry.name) for pace in each) for entry in dataclasses.fields(Pace)))


def _until_done(taken: Sequence[float], beside: int) -> float:
    """Seconds until the last of trials that take `taken` is done, `beside` at a time in their order."""
    free = [0.0] * beside
    for one in taken:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def _start_seconds(run: RunFolder) -> float | None:
    """From a run's creation to its end, without its trials: opening the model, reading the data. None of a run that was not one piece."""
    results = run.path / "results.csv"
    try:
        ended = results.stat().st_mtime
        taken = [entry["seconds"] for entry in map(run.result, run.trials()) if entry]
        spent = ended - run.created.timestamp() - _until_done(taken, run.settings.workers or 1)
    except (OSError, WorkbenchError):
        return None
    return spent if 0 <= spent < 120 else None
