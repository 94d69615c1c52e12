"""Long work that the page starts and watches: fetching a model, scanning it, measuring a task on it, racing ranks.

A job is work in the background (`loraxs_core.background`), in a folder of the user's data folder that is named after what it works
on: whoever opens the page later finds it there. ``job.json`` says what is to be done. Run as ``python -m app.jobs FOLDER``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_core.background import State, Status, WorkFolder, locked, process_main
from loraxs_core.documents import read_object
from loraxs_core.errors import RunError
from loraxs_core.paths import atomic_file, data_dir
from loraxs_core.progress import Cancellation, Cancelled, Progress, ProgressCallback

if TYPE_CHECKING:
    from loraxs_core.checkpoint import Checkpoint

PATIENCE_SECONDS = 20.0  # for another page that starts the same job; that takes a moment


class Job(WorkFolder):
    """One job on disk."""

    noun = "job"
    module = "app.jobs"

    @property
    def document(self) -> dict:
        """What is to be done: kind, model, options. Raises RunError when the folder does not say."""
        try:
            return read_object(self.path / "job.json")
        except FileNotFoundError:
            raise RunError(f"There is no job in {self.path}.") from None


def folder(kind: str, key: str) -> Path:
    """The folder of the job `kind` on `key` (a model's name or fingerprint)."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return data_dir("jobs") / f"{kind}-{digest}"


def start(kind: str, model: str, key: str, **options: Any) -> None:
    """Starts `kind` on `model` as a detached process; does nothing when that job is running already.

    options: ``minus`` and ``weights`` as `open_model` takes them, and what the kind's own work takes (`WORK`). Raises RunError when it
    cannot be started.
    """
    assert kind in WORK
    job = Job(folder(kind, key))
    with _alone(job):
        if job.status().is_running:
            return
        shutil.rmtree(job.path, ignore_errors=True)
        with atomic_file(job.path / "job.json") as temporary:
            temporary.write_text(json.dumps({"kind": kind, "model": model, "options": options}), encoding="utf-8")
        job.start()


def status(kind: str, key: str) -> Status | None:
    """How the job is doing; None when there is none."""
    now = Job(folder(kind, key)).status()
    return None if now.state is State.NEW else now


def cancel(kind: str, key: str) -> None:
    """Asks the job to stop, and ends its process when it does not."""
    Job(folder(kind, key)).cancel()


def forget(kind: str, key: str) -> None:
    """Removes a job that has ended."""
    known = status(kind, key)
    if known and not known.is_running:
        job = Job(folder(kind, key))
        with _alone(job):
            if not job.status().is_running:  # another page may just have started it again
                shutil.rmtree(job.path, ignore_errors=True)


@contextlib.contextmanager
def _alone(job: Job) -> Iterator[None]:
    """No other page starts or removes this job while the block runs. The lock is beside its folder, which both remove.

    Raises RunError when another page holds it for long.
    """
    beside = job.path.with_name(f".{job.path.name}")
    try:
        beside.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"Cannot write in {beside.parent}: {error.strerror or error}.") from error
    with locked(beside, PATIENCE_SECONDS, f"Another page is starting the same {job.noun}; try again."):
        yield


def _fetched(checkpoint: Checkpoint, options: dict, progress: ProgressCallback, cancelled: Cancelled) -> None:
    """Opening the model was all."""


def _scan(checkpoint: Checkpoint, options: dict, progress: ProgressCallback, cancelled: Cancelled) -> None:
    """options: ``parts`` and ``fast`` as `analyzers.spectra.scan` takes them."""
    from analyzers.spectra import scan

    scan(checkpoint, progress=progress, cancelled=cancelled, **options)


def _measure(checkpoint: Checkpoint, options: dict, progress: ProgressCallback, cancelled: Cancelled) -> None:
    """options: ``out``, and fields of `analyzers.compare.measuring.MeasureSettings`."""
    from analyzers.compare.measuring import MeasureSettings, measure_signals

    out = options.pop("out")
    measure_signals(checkpoint, MeasureSettings(**options), progress).save(out)


def _advise(checkpoint: Checkpoint, options: dict, progress: ProgressCallback, cancelled: Cancelled) -> None:
    """options: ``asked``, the fields of `analyzers.compare.rank_advice.AdviceSettings`."""
    from analyzers.compare.rank_advice import AdviceSettings, advise_rank

    advise_rank(AdviceSettings(**options["asked"]), progress=progress, cancelled=cancelled)


WORK: dict[str, Callable[[Checkpoint, dict, ProgressCallback, Cancelled], None]] = {
    "fetch": _fetched,
    "scan": _scan,
    "measure": _measure,
    "advise": _advise,
}  # kind -> what is done with the opened model: an entry each


def run_job(job: Job) -> None:
    """Does what `job` says, in this process, and says in its folder how it goes. Raises what stopped it."""
    from sample_models import open_model

    with job.working() as writer, writer.telling():
        writer.status(state=State.RUNNING, message="starting")
        document = job.document
        options = document["options"]

        def report(progress: Progress) -> None:
            if job.cancel_requested:
                raise Cancellation
            writer.progress(progress)

        minus, weights = options.pop("minus", None), options.pop("weights", True)
        checkpoint = open_model(document["model"], minus=minus, weights=weights, progress=report)
        WORK[document["kind"]](checkpoint, options, report, lambda: job.cancel_requested)
        writer.last_word(state=State.DONE, message="", fraction=1.0)


if __name__ == "__main__":
    sys.exit(process_main(lambda: run_job(Job(sys.argv[1]))))
