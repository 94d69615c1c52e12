"""One run on disk: what it is, how it is doing, what came out so far, and its process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from analyzers.compare.dry_build import refuse_unbuildable
from analyzers.compare.halving import Tuning, halvings
from analyzers.compare.paired import FILE as PREDICTIONS
from analyzers.compare.paired import resampled_files, score_interval, separated_front
from analyzers.compare.runs import records
from analyzers.compare.runs.inputs import accept_software, software, software_changes
from analyzers.compare.runs.writer import METRICS, RunWriter
from analyzers.compare.settings import SweepSettings
from analyzers.compare.spread import spread, spread_as
from analyzers.compare.summary import summarise
from analyzers.compare.tasks import CAUSAL, lower_is_better, own_source
from analyzers.compare.tasks.tables import on_this_machine
from analyzers.compare.trial_settings import TrialSettings
from loraxs_core.background import LOCK, RELEASE_SECONDS, Status, WorkFolder, locked
from loraxs_core.documents import read_object
from loraxs_core.errors import RunError, WeightsMissing, WorkbenchError
from loraxs_core.html import table
from loraxs_core.names import refuse_name, short_name
from loraxs_core.paths import atomic_file, data_dir, user_path
from loraxs_core.safetensors_file import file_stamp
from sample_models import CATALOGUE

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FORMAT, VERSION = "loraxs-run", 1
CONFIG = "config.json"
METRICS_BYTES = 64 * 1024**2  # of longer curves the end is read


@dataclass(frozen=True)
class RunStatus(Status):
    """trial: the one that is being trained."""

    trial: str = ""
    trials_done: int = 0
    trials_total: int = 0


class RunFolder(WorkFolder):
    """One run on disk. Reading it is safe while the run goes on."""

    noun = "run"
    module = "analyzers.compare.worker"
    status_type = RunStatus
    environment: ClassVar = {"TQDM_DISABLE": "1"}  # the log is for what matters, not for the states of a bar

    def __init__(self, path: str | os.PathLike):
        """Raises RunError when there is no run at `path`."""
        super().__init__(path)
        if not os.path.lexists(self.config_path):
            raise RunError(f"There is no run in {self.path}; `loraxs compare` starts one.")
        if not self.config_path.is_file():
            raise RunError(f"{self.config_path} is damaged: it is no plain file.")

    @classmethod
    def create(cls, settings: SweepSettings, out: str | os.PathLike | None = None) -> RunFolder:
        """A new run folder with its configuration; the same one again when it holds the same settings, to be resumed.

        Raises RunError for a folder that holds something else, SettingsError for settings that cannot be run.
        """
        settings = absolute(settings)
        task = settings.check()
        if own_source(settings.task) is not None and task.kind == CAUSAL:
            settings = dataclasses.replace(settings, causal=True)
        path = user_path(out).resolve() if out else new_run_path(settings)
        settings = spread_as(settings, cls(path).settings) if os.path.lexists(path / CONFIG) else spread(settings)
        if not os.path.lexists(path / CONFIG):
            foreign = path.exists() and (not path.is_dir() or any(not _begun(entry) for entry in path.iterdir()))
            if foreign and not os.path.lexists(path / CONFIG):  # somebody else may have made the run between the two looks
                raise RunError(f"{path} is not empty and holds no run; choose another folder.")
            refuse_name(path)
            refuse_unbuildable(settings, task)
            if settings.tune_lr:
                halvings(settings, task.read(settings.data, None))  # too few steps are told now, and not once the run has begun
            cls._configure(path, settings)
        run = cls(path)
        if run.settings != settings:
            raise RunError(f"{path} holds a run with other settings; choose another folder or remove it.")
        return run

    @classmethod
    def _configure(cls, path: Path, settings: SweepSettings) -> None:
        """Writes the configuration, unless somebody else has done so first."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"Cannot write {path}: {error.strerror or error}; choose another folder.") from error
        with locked(path, RELEASE_SECONDS, f"Another run is being made in {path}; choose another folder."):
            if os.path.lexists(path / CONFIG):
                return
            document = {
                "format": FORMAT,
                "version": VERSION,
                "created": time.time(),
                "settings": settings.to_dict(),
                "software": software(),
            }
            with atomic_file(path / CONFIG) as temporary:
                temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    # -- what it is -----------------------------------------------------------------------------------------------------------

    @property
    def config_path(self) -> Path:
        return self.path / CONFIG

    @property
    def config(self) -> dict:
        """config.json. Raises RunError when it is not one of this program."""
        try:
            document = read_object(self.config_path)
        except FileNotFoundError:
            raise RunError(f"Cannot read {self.config_path}: it is gone.") from None
        if document.get("format") != FORMAT:
            raise RunError(f"{self.config_path} is not the configuration of a run of this program.")
        version = document.get("version")
        if version != VERSION:
            newer = isinstance(version, int) and version > VERSION
            what = "a newer version of this program; update it to read the run" if newer else "no version of this program"
            raise RunError(f"{self.config_path} was written by {what}.")
        return document

    @property
    def settings(self) -> SweepSettings:
        try:
            return SweepSettings.from_dict(self.config.get("settings"))
        except RunError:
            raise
        except WorkbenchError as error:
            raise RunError(f"{self.config_path} holds settings that cannot be run: {error}") from None

    @property
    def created(self) -> datetime:
        """When it was. Raises RunError when the configuration does not say."""
        try:
            return datetime.fromtimestamp(self.config["created"], UTC)
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            raise RunError(f"{self.config_path} is damaged: it does not say when the run was created.") from None

    def cancel(self, timeout: float = 3.0) -> None:
        """As all work does, within 5 s: what has to be ended goes on from its last checkpoint when it is resumed."""
        super().cancel(timeout)

    @property
    def bytes(self) -> int:
        """What it takes on disk."""
        return sum(file.lstat().st_size for file in self.path.rglob("*") if file.is_file() and not file.is_symlink())

    def delete(self) -> None:
        """Removes it with all it holds. Raises RunError while it runs, or where the disk does not let it go."""
        self._refuse_running()
        gone = self.path.with_name(f".{self.path.name}.deleted")
        try:
            self.path.rename(gone)  # at once: nobody sees half of a run
            shutil.rmtree(gone)
        except OSError as error:
            raise RunError(f"Cannot remove {self.path}: {error.strerror or error}.") from error

    def trial_folder(self, trial: str) -> Path:
        return self.path / "trials" / trial

    def tuning_folder(self, variant: str) -> Path:
        """Where the rates of a variant (`TrialSettings.place`) are tuned."""
        return self.path / "tuning" / variant

    def tunings(self) -> list[Tuning]:
        """What is known of the rates that are tuned, in the order of the variants; of some that may be unfinished."""
        if not self.settings.tune_lr:
            return []
        found = (Tuning.read(self.tuning_folder(trial.place)) for trial, _ in self.settings.to_tune())
        return [tuning for tuning in found if tuning is not None]

    def trials(self) -> list[TrialSettings]:
        """Those of the settings, at the rates that have been found where rates are tuned."""
        settings = self.settings
        if not settings.tune_lr:
            return settings.trials()
        return settings.trials({one.variant: one.chosen for one in self.tunings() if one.chosen is not None})

    # -- what came out --------------------------------------------------------------------------------------------------------

    def metrics(self) -> pd.DataFrame:
        """The curves: trial, method, label, seed, learning_rate, kind (``train``, ``eval``), step, epoch, value (the loss), seconds
        (of training and its evaluations so far; runs of earlier versions have none), and the metrics at evaluations. Of a trial that was started again only the last attempt; a line being written is left out."""
        import pandas as pd

        columns = ["trial", "method", "label", "seed", "learning_rate", "kind", "step", "epoch", "value", "seconds"]
        frame = pd.DataFrame(records.curves(self._lines(METRICS, METRICS_BYTES)))
        return frame.reindex(columns=[*columns, *(name for name in frame.columns if name not in columns)])

    def result(self, trial: TrialSettings) -> dict | None:
        """The record of a trial that has finished, and whose record can be believed."""
        try:
            return records.finished(self.trial_folder(trial.id), trial)
        except RunError:
            return None

    def failures(self) -> list[dict]:
        """Trials that failed, or whose record is damaged: trial, method, label, seed, error."""
        return [entry for entry in self._records() if entry["state"] == "failed"]

    def remarks(self) -> list[str]:
        """Sentences about trials that have finished with a score that says little, those that diverged, about their data, and about software that was
        exchanged between trials."""
        entries = self._records()
        data = dict.fromkeys(sentence for entry in entries for sentence in records.on_data(entry))
        said = [f"{entry['remark']} (seed {entry['seed']})" for entry in entries if isinstance(entry.get("remark"), str)]
        edges = [one.sentence for one in self.tunings() if one.at_edge]
        return [*software_changes(self.path), *data, *said, *edges]

    def accept_software(self) -> None:
        """Lets the run go on although it began with other software; its remarks say so then. Raises RunError while it runs."""
        self._refuse_running()
        accept_software(self.path)

    def results(self) -> pd.DataFrame:
        """One row a finished or failed trial, in the order of the sweep; `state` and `error` tell them apart."""
        import pandas as pd

        return pd.DataFrame(self._records())

    def summary(self) -> pd.DataFrame:
        """One row a method or plan: see `analyzers.compare.summary.summarise`. ``interval`` says what `low` and `high` are over:
        ``seeds`` or, of a single seed, the test ``examples`` (`analyzers.compare.paired`); None where nothing tells."""
        results = self.results()
        summary = summarise(results)
        if "score" not in summary:
            return summary
        draws, metric = self.draws(summary), summary["metric"].dropna().iloc[0]
        counts = results["test_examples"].astype(float).groupby(results["label"]).max() if "test_examples" in results else {}
        known = {label: score_interval(one, metric, counts.get(label, float("nan"))) for label, one in draws.items()}
        single = summary["seeds"] == 1
        over = [
            "seeds" if seeds > 1 else "examples" if label in known else None
            for seeds, label in zip(summary["seeds"], summary["label"], strict=True)
        ]
        for position, side in enumerate(("low", "high")):
            found = summary["label"].map({label: pair[position] for label, pair in known.items()}).astype(float)
            summary[side] = summary[side].mask(single & found.notna(), found)
        lower = lower_is_better(metric)
        return summary.assign(interval=over, front=summary["label"].isin(separated_front(summary, draws, lower=lower)))

    def draws(self, summary: pd.DataFrame | None = None) -> dict[str, np.ndarray]:
        """Label -> its score on test examples drawn anew, alike for all: of the first seed at the rate that is reported."""
        summary = summarise(self.results()) if summary is None else summary
        if "score" not in summary:
            return {}
        rates = dict(zip(summary["label"], summary["learning_rate"], strict=True))
        files: dict[str, tuple[str, Path, object, float]] = {}
        for trial in self.trials():
            if rates.get(trial.variant) != trial.learning_rate or trial.variant in files:
                continue
            folder, record = self.trial_folder(trial.id), self.result(trial)
            if record is not None and record["score"] is not None:
                with contextlib.suppress(OSError):
                    stamp = file_stamp((folder / PREDICTIONS).stat())
                    files[trial.variant] = (trial.variant, folder, stamp, record["score"])
        return resampled_files(tuple(files.values()), summary["metric"].dropna().iloc[0])

    def _repr_html_(self) -> str:
        summary = self.summary()
        scored = "score" in summary
        rows = (
            (row["label"], row["score"] if scored else "", row["parameters"] if scored else "")
            for row in summary.to_dict("records")
        )
        return table(f"{self.path}: {self.status().state}", ["method", "score", "trained numbers"], rows, total=len(summary))

    # -- inside ---------------------------------------------------------------------------------------------------------------

    def _writer(self) -> RunWriter:
        writer = RunWriter(self)
        writer.mend()
        return writer

    def _records(self) -> list[dict]:
        found = []
        for trial in self.trials():
            folder = self.trial_folder(trial.id)
            try:
                entry = records.finished(folder, trial) or records.failed(folder, trial)
            except RunError as damage:
                entry = records.failure(trial, f"{damage} Resuming the run trains it again.")
            if entry:
                found.append(entry)
        return found

    def _own_folders(self) -> Iterator[Path]:
        yield self.path
        for part in ("trials/*", "tuning/*", "tuning/*/*"):
            with contextlib.suppress(OSError):
                yield from (folder for folder in self.path.glob(part) if folder.is_dir())


def start_sweep(settings: SweepSettings, out: str | os.PathLike | None = None) -> RunFolder:
    """Starts `settings` as a detached process and returns its folder at once. An unfinished run in `out` is resumed."""
    return RunFolder.create(settings, out).start()


def new_run_path(settings: SweepSettings) -> Path:
    """A new folder among the user's runs, made here so that nobody else takes it: when, which model, which task."""
    words = [Path(settings.model).name, Path(own_source(settings.task) or settings.task).stem]
    tail = "-".join(short_name(re.sub(r"[^\w.]+", "-", word)) for word in words)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{tail}".rstrip(".")
    runs = data_dir("runs")
    for number in range(1, 10_000):
        path = runs / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"Cannot make the folder {path}: {error.strerror or error}.") from error
        return path
    raise RunError(f"There are too many runs called {stem} in {runs}; remove some.")


def _begun(entry: Path) -> bool:
    """Whether this is of another process that is just making a run here, or was ended doing so."""
    return entry.name == LOCK or entry.name.startswith(f".{CONFIG}.")


def absolute(settings: SweepSettings) -> SweepSettings:
    """Local paths made absolute, so that the run can be resumed from anywhere. Raises WeightsMissing for an architecture alone."""
    if settings.model in CATALOGUE and not CATALOGUE[settings.model].has_weights:
        raise WeightsMissing(
            f"{settings.model} is an architecture without weights, so it cannot be fine-tuned; give a model that has them."
        )
    changes = {}
    if settings.model not in CATALOGUE and user_path(settings.model).exists():
        changes["model"] = str(user_path(settings.model).resolve())
    source = own_source(settings.task)
    if source is not None and (settings.task.startswith("csv:") or on_this_machine(source)[0].exists()):
        changes["task"] = settings.task.removesuffix(source) + str(user_path(source).resolve())
    if settings.data:
        changes["data"] = str(user_path(settings.data).resolve())
    return dataclasses.replace(settings, **changes)
