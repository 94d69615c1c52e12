"""Detached runs: they outlive who started them, can be cancelled, crash visibly, resume, and fill a disk in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from analyzers.compare import RunFolder, SweepSettings, find_run, list_runs, run_sweep, start_sweep
from loraxs_core.errors import RunError
from loraxs_core.processes import process_started
from tests.analyzers.compare_helpers import sentiment_csv, tiny_model

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and sessions")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return str(tiny_model(folder / "model")), f"csv:{sentiment_csv(folder / 'film.csv')}"


def settings(place, **changes) -> SweepSettings:
    model, task = place
    chosen = {"methods": ("head-only", "lora-xs"), "rank": 4, "steps": 3, "batch": 8, "sequence": 16, "evaluations": 1}
    return SweepSettings(model, task, **{**chosen, "device": "cpu", "threads": 1, **changes})


def wait(run: RunFolder, until, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = run.status()
        if until(status):
            return status
        time.sleep(0.1)
    raise AssertionError(f"{status} after {seconds} s; log: {run.log()}")


def training(status) -> bool:
    return "step" in status.message or not status.is_running


def test_a_run_outlives_the_process_that_started_it(place, tmp_path):
    document = json.dumps(settings(place).to_dict())
    program = (
        "import json, sys; from analyzers.compare import SweepSettings, start_sweep;"
        "start_sweep(SweepSettings.from_dict(json.loads(sys.argv[1])), sys.argv[2])"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program, document, str(tmp_path / "run")], check=True, timeout=60)
    assert time.monotonic() - began < 30
    run = RunFolder(tmp_path / "run")
    assert run.status().is_running
    status = wait(run, lambda found: not found.is_running)
    assert status.state == "done", run.log()
    assert status.detached
    assert os.getsid(os.getpid()) != status.pid
    assert list(run.results()["state"]) == ["done", "done"]
    assert "accuracy" in run.log()


def test_cancel_then_resume_then_crash(place, tmp_path):
    run = start_sweep(settings(place, steps=100_000, methods=("head-only",)), tmp_path / "run")
    with pytest.raises(RunError, match="running already"):
        run.start()
    wait(run, training)
    with pytest.raises(RunError, match="running already"):
        run_sweep(run)
    began = time.monotonic()
    run.cancel()
    assert time.monotonic() - began < 15
    status = run.status()
    assert (status.state, status.error) == ("cancelled", "")
    assert process_started(status.pid) is None
    assert status.eta_seconds is None

    run.start()
    status = wait(run, lambda found: not found.is_running or len(run.metrics()) > 0)
    assert status.is_running
    os.kill(status.pid, signal.SIGKILL)
    status = wait(run, lambda found: not found.is_running, 10)
    assert status.state == "crashed"
    assert "ended without a word" in status.error

    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"trial": "head-on')  # a crash can cut a line
    assert len(run.metrics()), "the curve is kept and readable"
    points = len(run.metrics())
    with run.working() as writer:  # what resuming begins with
        writer.metric({"event": "start", "trial": "another"})
        writer.metric({"trial": "another", "kind": "train", "step": 1, "value": 0.5})
    assert len(run.metrics()) == points + 1, "the new lines are not glued to the cut one"


def test_another_process_with_the_same_number_is_not_taken_for_the_run(place, tmp_path):
    run = RunFolder.create(settings(place), tmp_path / "run")
    assert run.status().state == "new"
    mine = os.getpid()
    run._write_status({"state": "running", "pid": mine, "process_started": process_started(mine), "detached": True})
    assert run.status().state == "running"
    run._write_status({"state": "running", "pid": mine, "process_started": process_started(mine) - 60, "detached": True})
    assert run.status().state == "crashed"
    run.cancel()  # ends nobody
    assert psutil.pid_exists(mine)


def test_a_zombie_is_dead():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    deadline = time.monotonic() + 10
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process_started(child.pid) is None
    child.wait()


def test_a_worker_that_cannot_work_says_so_in_its_folder(place, tmp_path):
    model, task = place
    gone = tmp_path / "model"
    shutil.copytree(model, gone)
    run = RunFolder.create(settings((str(gone), task)), tmp_path / "run")
    shutil.rmtree(gone)
    status = wait(run.start(), lambda found: not found.is_running)
    assert status.state == "failed"
    assert str(gone) in status.error
    assert "\n" not in status.error


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 600 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_a_failed_run(place, small_disk):
    run = RunFolder.create(settings(place, steps=5), small_disk / "run")
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(max(0, free - 80_000)))
    with pytest.raises(RunError) as raised:
        run_sweep(run)
    assert "\n" not in str(raised.value)
    assert "No space left" in str(raised.value) or "disk is full" in str(raised.value)
    assert run.status().state == "failed"
    assert run.status().error == str(raised.value)
    assert not any(path.name.startswith(".adapter") for path in run.path.rglob("*")), "no half-written folder is left"
    (small_disk / "filler").unlink()
    run_sweep(run)
    assert list(run.results()["state"]) == ["done", "done"]


def test_runs_are_listed_newest_first_and_found_by_name(place, own_folders):
    first = RunFolder.create(settings(place))
    time.sleep(0.05)
    second = RunFolder.create(settings(place, steps=9))
    assert first.path != second.path
    assert [run.name for run in list_runs()] == [second.name, first.name]
    assert find_run(first.name).settings == first.settings
    assert find_run(str(second.path)).name == second.name
    with pytest.raises(RunError, match=rf"There is no run 'lost'; the latest are {second.name}"):
        find_run("lost")
    (second.path / "config.json").write_text("{}")
    assert [run.name for run in list_runs()] == [first.name]
    with pytest.raises(RunError, match="not the configuration of a run"):
        _ = second.settings
    with pytest.raises(RunError, match="There is no run in"):
        RunFolder(own_folders)


def test_the_time_left_is_reckoned_without_what_comes_before_the_first_step(monkeypatch):
    from analyzers.compare import meter

    class Writer:
        left: object = "unsaid"

        def progress(self, said, **more):
            self.left = more["eta_seconds"]

    now = [0.0]
    monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=lambda: now[0]))
    work = SimpleNamespace(name="one", cost=100.0, is_tuning=False, title="one", trial=SimpleNamespace(id="one"))
    told = meter.Meter(writer := Writer(), None, [work])
    told.begin(work)
    now[0] = 30.0  # reading the data and the model, and a first step that warms up
    told.advance(work, 1.0, "step 1")
    assert writer.left is None
    now[0] = 31.0
    told.advance(work, 1.0, "step 2")
    assert writer.left == pytest.approx(98.0), "it was 1,519 s with what comes once counted in"
