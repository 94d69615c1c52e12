"""Run folders: what a sweep leaves on disk, found again after a refresh, a crash or a restart.

    config.json         the settings, whole: the run can be repeated from it
    status.json         state, process, progress; replaced whole
    metrics.jsonl       the curves, one point a line
    log.txt             what the process said
    trials/ID/adapter/  what was trained; trials/ID/result.json the record, or failure.json one sentence
    results.csv         the records as a table

A folder is finished when its status says so; a run whose process is gone without a word is called crashed, and can be resumed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from analyzers.compare.processes import kill_tree, process_started
from analyzers.compare.sweep import SweepSettings
from loraxs_core.errors import RunError, SettingsError, WeightsMissing
from loraxs_core.paths import atomic_file, data_dir, user_path

if TYPE_CHECKING:
    import pandas as pd

    from analyzers.compare.writer import RunWriter

FORMAT, VERSION = "loraxs-run", 1
RUNNING = ("starting", "running")
RELEASE_SECONDS = 15


@dataclass(frozen=True)
class RunStatus:
    """state: new, starting, running, done, failed, cancelled, or crashed (its process is gone without a word). fraction: of all work.
    eta_seconds: time left at the rate so far. error: one sentence when it failed or crashed. started, updated: Unix seconds."""

    state: str
    message: str = ""
    error: str = ""
    fraction: float = 0.0
    eta_seconds: float | None = None
    trial: str = ""
    trials_done: int = 0
    trials_total: int = 0
    pid: int | None = None
    process_started: float | None = None
    detached: bool = False
    started: float | None = None
    updated: float | None = None

    @property
    def is_running(self) -> bool:
        return self.state in RUNNING


class RunFolder:
    """One run on disk. Reading it is safe while the run goes on."""

    def __init__(self, path: str | os.PathLike):
        """Raises RunError when there is no run at `path`."""
        self.path = Path(path)
        if not self.config_path.is_file():
            raise RunError(f"There is no run in {self.path}; `loraxs compare` starts one.")

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, settings: SweepSettings, out: str | os.PathLike | None = None) -> RunFolder:
        """A new run folder with its configuration; the same one again when it holds the same settings, to be resumed.

        Raises RunError for a folder that holds something else, SettingsError for settings that cannot be run.
        """
        settings = _absolute(settings)
        settings.check()
        path = user_path(out).resolve() if out else new_run_path(settings)
        if (path / "config.json").is_file():
            run = cls(path)
            if run.settings != settings:
                raise RunError(f"{path} holds a run with other settings; choose another folder or remove it.")
            return run
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(f"{path} is not empty and holds no run; choose another folder.")
        document = {
            "format": FORMAT,
            "version": VERSION,
            "created": time.time(),
            "settings": settings.to_dict(),
            "software": software(),
        }
        with atomic_file(path / "config.json") as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return cls(path)

    # -- what it is -----------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def config(self) -> dict:
        """config.json. Raises RunError when it is not one of this program."""
        try:
            document = json.loads(self.config_path.read_text(encoding="utf-8"))
            if document["format"] == FORMAT and document["version"] == VERSION:
                return document
        except OSError as error:
            raise RunError(f"Cannot read {self.config_path}: {error.strerror or error}.") from None
        except (ValueError, KeyError, TypeError):
            pass
        raise RunError(f"{self.config_path} is not the configuration of a run of this program.")

    @property
    def settings(self) -> SweepSettings:
        try:
            return SweepSettings.from_dict(self.config["settings"])
        except (KeyError, TypeError, AttributeError, SettingsError) as error:
            raise RunError(f"{self.config_path} holds settings that cannot be run: {error}") from None

    @property
    def created(self) -> datetime:
        return datetime.fromtimestamp(self.config["created"], UTC)

    def trial_folder(self, trial: str) -> Path:
        return self.path / "trials" / trial

    # -- how it is doing ------------------------------------------------------------------------------------------------------

    def status(self) -> RunStatus:
        """What status.json says, corrected by whether the process that wrote it is alive."""
        found = self._status()
        if found.is_running and not self._alive(found):
            found = self._status()  # the last word may have been written between the two looks
            if found.is_running and not self._alive(found):
                lost = f"The process of this run ended without a word; {self.log_path} may say why. It can be resumed."
                return RunStatus(**{**found.__dict__, "state": "crashed", "error": lost})
        return found

    def metrics(self) -> pd.DataFrame:
        """The curves: trial, method, label, seed, learning_rate, kind (``train``, ``eval``), step, epoch, value (the loss), and the
        metrics at evaluations. Of a trial that was started again only the last attempt; a line being written is left out."""
        import pandas as pd

        columns = ["trial", "method", "label", "seed", "learning_rate", "kind", "step", "epoch", "value"]
        rows: dict[str, list[dict]] = {}
        for line in self._lines("metrics.jsonl"):
            try:
                entry = json.loads(line)
                if entry.get("event") == "start":
                    rows[entry["trial"]] = []
                else:
                    rows.setdefault(entry["trial"], []).append(entry)
            except (ValueError, KeyError, AttributeError):
                continue
        frame = pd.DataFrame([entry for entries in rows.values() for entry in entries])
        return frame.reindex(columns=[*columns, *(name for name in frame.columns if name not in columns)])

    def result(self, trial: str) -> dict | None:
        """The record of a finished trial."""
        return _read(self.trial_folder(trial) / "result.json")

    def failures(self) -> list[dict]:
        """Trials that failed: trial, method, label, seed, error."""
        found = (_read(self.trial_folder(trial.id) / "failure.json") for trial in self.settings.trials())
        return [entry for entry in found if entry]

    def results(self) -> pd.DataFrame:
        """One row a finished or failed trial, in the order of the sweep; `state` and `error` tell them apart."""
        import pandas as pd

        rows = []
        for trial in self.settings.trials():
            entry = self.result(trial.id) or _read(self.trial_folder(trial.id) / "failure.json")
            if entry:
                rows.append(entry)
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """One row a method or plan, with intervals over seeds: see `analyzers.compare.summary.summarise`."""
        from analyzers.compare.summary import summarise

        return summarise(self.results())

    def log(self, lines: int = 200) -> str:
        """The end of log.txt."""
        return "\n".join(self._lines("log.txt")[-lines:])

    # -- starting and stopping ------------------------------------------------------------------------------------------------

    def start(self) -> RunFolder:
        """Starts (or resumes) the run as a process of its own, which outlives this one. Raises RunError when it runs already."""
        if self.status().is_running:
            raise RunError(f"The run {self.name} is running already.")
        for name in ("cancel", "worker.json"):
            (self.path / name).unlink(missing_ok=True)
        root = str(Path(__file__).resolve().parents[2])
        try:
            self._write_status({"state": "starting", "message": "starting", "started": time.time()})
            with open(self.log_path, "ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "analyzers.compare.worker", str(self.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=os.environ
                    | {
                        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
                        "TQDM_DISABLE": "1",  # the log is for what matters, not for the states of a bar
                    },
                )
        except OSError as error:
            raise RunError(f"Cannot start the run in {self.path}: {error.strerror or error}.") from error
        with atomic_file(self.path / "worker.json") as temporary:
            temporary.write_text(
                json.dumps({"pid": process.pid, "process_started": process_started(process.pid)}), encoding="utf-8"
            )
        return self

    @property
    def cancel_requested(self) -> bool:
        return (self.path / "cancel").exists()

    def cancel(self, timeout: float = 15.0) -> None:
        """Asks the run to stop, and ends its process when it does not within `timeout` seconds. Does nothing to one that ended."""
        status = self.status()
        if not status.is_running:
            return
        with contextlib.suppress(OSError):
            (self.path / "cancel").touch()
        pid, born = self._process(status)
        if pid is None or pid == os.getpid():
            return
        if status.detached or status.state == "starting":
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while process_started(pid) == born and time.monotonic() < deadline:
            time.sleep(0.05)
        if process_started(pid) == born and (status.detached or status.state == "starting"):
            kill_tree(pid)
            self._write_status({**_known(status), "state": "cancelled", "message": "cancelled; the process had to be ended"})
        elif self._status().is_running and process_started(pid) != born:
            self._write_status({**_known(status), "state": "cancelled", "message": "cancelled"})

    @contextlib.contextmanager
    def working(self) -> Iterator[RunWriter]:
        """Claims the folder for this process while the block runs. Raises RunError when another process works on it."""
        from filelock import FileLock, Timeout

        from analyzers.compare.writer import RunWriter

        # A killed process counts as dead before the last of its threads has let go of the lock.
        patience = 0 if self.status().is_running else RELEASE_SECONDS
        try:
            lock = FileLock(self.path / ".lock", timeout=patience)
            lock.acquire()
        except Timeout:
            raise RunError(f"The run {self.name} is running already.") from None
        except OSError as error:
            raise RunError(f"Cannot write in {self.path}: {error.strerror or error}.") from error
        try:
            writer = RunWriter(self)
            if not writer.known["detached"]:  # a worker's `start` did so, and a request may have come since
                (self.path / "cancel").unlink(missing_ok=True)
            yield writer
        finally:
            lock.release()

    # -- inside ---------------------------------------------------------------------------------------------------------------

    def _status(self) -> RunStatus:
        known = _read(self.path / "status.json")
        if known is None:
            return RunStatus("new" if not (self.path / "worker.json").exists() else "starting")
        return RunStatus(**{key: value for key, value in known.items() if key in RunStatus.__dataclass_fields__})

    def _process(self, status: RunStatus) -> tuple[int | None, float | None]:
        if status.pid is not None:
            return status.pid, status.process_started
        worker = _read(self.path / "worker.json") or {}
        return worker.get("pid"), worker.get("process_started")

    def _alive(self, status: RunStatus) -> bool:
        pid, born = self._process(status)
        if pid is None:  # between the folder and its process: a moment, unless whoever was starting it died
            return status.state == "starting" and time.time() - (status.started or 0) < 30
        return born is not None and process_started(pid) == born

    def _write_status(self, document: dict) -> None:
        with atomic_file(self.path / "status.json") as temporary:
            temporary.write_text(json.dumps({**document, "updated": time.time()}), encoding="utf-8")

    def _lines(self, name: str) -> list[str]:
        try:
            return (self.path / name).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []


def start_sweep(settings: SweepSettings, out: str | os.PathLike | None = None) -> RunFolder:
    """Starts `settings` as a detached process and returns its folder at once. An unfinished run in `out` is resumed."""
    return RunFolder.create(settings, out).start()


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


def new_run_path(settings: SweepSettings) -> Path:
    """A folder name among the user's runs that is not taken: when, which model, which task."""
    words = [Path(settings.model).name, Path(settings.task.removeprefix("csv:")).stem]
    tail = "-".join(re.sub(r"[^\w.]+", "-", word) for word in words)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{tail}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 10_000))
    return next(path for path in (data_dir("runs") / name for name in names) if not path.exists())


def software() -> dict[str, str]:
    """Versions that a result depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "peft", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _known(status: RunStatus) -> dict:
    return {key: value for key, value in status.__dict__.items() if key not in ("eta_seconds", "updated")}


def _absolute(settings: SweepSettings) -> SweepSettings:
    """Local paths made absolute, so that the run can be resumed from anywhere. Raises WeightsMissing for an architecture alone."""
    import dataclasses

    from sample_models import CATALOGUE

    if settings.model in CATALOGUE and not CATALOGUE[settings.model].has_weights:
        raise WeightsMissing(
            f"{settings.model} is an architecture without weights, so it cannot be fine-tuned; give a model that has them."
        )
    changes = {}
    if settings.model not in CATALOGUE and user_path(settings.model).exists():
        changes["model"] = str(user_path(settings.model).resolve())
    if settings.task.startswith("csv:"):
        changes["task"] = "csv:" + str(user_path(settings.task.removeprefix("csv:")).resolve())
    if settings.data:
        changes["data"] = str(user_path(settings.data).resolve())
    return dataclasses.replace(settings, **changes)


def _read(path: Path) -> dict | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return document if isinstance(document, dict) else None
    except (OSError, ValueError):
        return None
