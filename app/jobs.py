"""Long work that the page starts and watches: fetching a model, scanning it. A process of its own that outlives the page.

A job is a folder in the user's data folder, named after what it works on, with ``status.json`` (replaced whole), ``log.txt``
and, once asked to stop, ``cancel``. Whoever opens the page later finds it there. Run as
``python -m app.jobs KIND MODEL FOLDER OPTIONS``, the options as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from loraxs_core.errors import RunError, WorkbenchError
from loraxs_core.paths import atomic_file, data_dir
from loraxs_core.progress import Cancellation, Progress

WRITE_EVERY_SECONDS = 0.2
KINDS = ("fetch", "scan")


@dataclass(frozen=True)
class JobStatus:
    """What a job's folder says. state: running, done, failed, cancelled, or lost (its process is gone without a word)."""

    state: str
    fraction: float = 0.0
    remaining: float | None = None
    message: str = ""
    error: str = ""

    @property
    def is_running(self) -> bool:
        return self.state == "running"


def folder(kind: str, key: str) -> Path:
    """The folder of the job `kind` on `key` (a model's name or fingerprint)."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return data_dir("jobs") / f"{kind}-{digest}"


def start(kind: str, model: str, key: str, **options) -> None:
    """Starts `kind` on `model` as a detached process; does nothing when that job is running already.

    options: ``minus`` and ``weights`` as `open_model` takes them; of a scan, ``parts`` and ``fast`` as `analyzers.spectra.scan`
    does.
    """
    assert kind in KINDS
    place = folder(kind, key)
    if (known := status(kind, key)) and known.is_running:
        return
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        with open(place / "log.txt", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "app.jobs", kind, model, str(place), json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(
                        filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")])
                    )
                },
            )
    except OSError as error:
        raise RunError(f"Cannot start the {kind} of {model}: {error.strerror or error}.") from error
    _write(place / "process.json", {"pid": process.pid, "born": _born(process.pid)})


def status(kind: str, key: str) -> JobStatus | None:
    """How the job is doing; None when there is none."""
    place = folder(kind, key)
    process = _read(place / "process.json")
    if not process:
        return None
    said = _read(place / "status.json") or {"state": "running", "message": "starting"}
    state = said["state"]
    # The last word may have been written between the two looks: a process that is gone gets a second one.
    if state == "running" and _born(process["pid"]) != process["born"]:
        said = _read(place / "status.json") or said
        state = "lost" if said["state"] == "running" else said["state"]
    lost = f"Its process ended without a word; the log is in {place / 'log.txt'}." if state == "lost" else ""
    return JobStatus(state, said.get("fraction", 0.0), said.get("remaining"), said.get("message", ""), said.get("error", lost))


def cancel(kind: str, key: str) -> None:
    """Asks the job to stop; it does at its next step."""
    place = folder(kind, key)
    if place.is_dir():
        (place / "cancel").touch()


def forget(kind: str, key: str) -> None:
    """Removes a job that has ended."""
    known = status(kind, key)
    if known and not known.is_running:
        shutil.rmtree(folder(kind, key), ignore_errors=True)


def _born(pid: int) -> float | None:
    """When the process began, so that a number that was given to another process later is not taken for it."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except (psutil.Error, ValueError):
        return None


def _write(path: Path, said: dict) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(said), encoding="utf-8")


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _run(kind: str, model: str, place: Path, options: dict) -> None:
    """The process itself: does the work and says how it goes."""
    file = place / "status.json"
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        if (place / "cancel").exists():
            raise Cancellation
        if time.monotonic() - last >= WRITE_EVERY_SECONDS or progress.fraction >= 1:
            last = time.monotonic()
            said = {"fraction": progress.fraction, "remaining": progress.remaining, "message": progress.message}
            _write(file, {"state": "running", **said})

    try:
        from sample_models import open_model

        minus, weights = options.pop("minus", None), options.pop("weights", True)
        checkpoint = open_model(model, minus=minus, weights=weights, progress=report)
        if kind == "scan":
            from analyzers.spectra import scan

            scan(checkpoint, progress=report, cancelled=(place / "cancel").exists, **options)
        _write(file, {"state": "done", "fraction": 1.0})
    except Cancellation:
        _write(file, {"state": "cancelled"})
    except WorkbenchError as error:
        _write(file, {"state": "failed", "error": str(error)})
    except Exception as error:
        _write(
            file, {"state": "failed", "error": f"{type(error).__name__}: {error} (a bug; the log is in {place / 'log.txt'})."}
        )
        raise


if __name__ == "__main__":
    _run(sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
