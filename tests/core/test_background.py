"""Detached processes described by a folder: who is alive, what a start leaves, what a child imports, what a damaged folder says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from loraxs_core import background, processes
from loraxs_core.background import State, Status, WorkFolder
from loraxs_core.errors import RunError
from loraxs_core.paths import atomic_file
from loraxs_core.processes import identity, is_alive, process_started

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and sessions")
ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import sys, time
from loraxs_core.background import WorkFolder, process_main

class Sleeper(WorkFolder):
    noun, module = "nap", "sleeper"

def nap():
    work = Sleeper(sys.argv[1])
    with work.working() as writer, writer.telling():
        writer.status(state="running", message="asleep")
        time.sleep(60)

if __name__ == "__main__":
    sys.exit(process_main(nap))
"""


class Sleeper(WorkFolder):
    noun, module = "nap", "sleeper"


@pytest.fixture
def nap(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "sleeper.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    (tmp_path / "nap").mkdir()
    work = Sleeper(tmp_path / "nap")
    yield work
    work.cancel()


def until(work, ready, seconds=60):
    deadline = time.monotonic() + seconds
    while not ready(work.status()):
        assert time.monotonic() < deadline, (work.status(), work.log())
        time.sleep(0.05)
    return work.status()


def test_started_watched_cancelled_and_started_again(nap):
    assert nap.status().state is State.NEW
    assert nap.start().status().is_running
    status = until(nap, lambda status: status.message == "asleep")
    assert is_alive(identity(status.pid))
    with pytest.raises(RunError, match="The nap nap is running already"):
        nap.start()
    nap.cancel()
    assert nap.status().state is State.CANCELLED
    assert process_started(status.pid) is None
    until(nap.start(), lambda status: status.message == "asleep")
    os.kill(nap.status().pid, signal.SIGKILL)
    status = until(nap, lambda status: not status.is_running)
    assert (status.state, status.state.can_be_resumed) == (State.CRASHED, True)
    assert "ended without a word" in status.error


def test_two_that_start_it_at_once_start_it_once(nap):
    refused = []

    def start():
        try:
            Sleeper(nap.path).start()
        except RunError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["The nap nap is running already."] * 3
    status = until(nap, lambda status: status.message == "asleep")
    mine = [child for child in psutil.Process().children() if str(nap.path) in " ".join(child.cmdline())]
    assert [child.pid for child in mine] == [status.pid]


def test_setting_the_clock_changes_nothing(nap, monkeypatch):
    """A step of the clock moves every birth that is counted on it, as psutil's `create_time` is."""
    status = until(nap.start(), lambda status: status.message == "asleep")
    for step in (-3600.0, 1.0, 86_400.0):
        with monkeypatch.context() as patched:
            boot = psutil.boot_time() + step
            patched.setattr(psutil, "boot_time", lambda boot=boot: boot)
            patched.setattr(psutil._pslinux, "boot_time", lambda boot=boot: boot)
            now = time.time() + step
            patched.setattr(time, "time", lambda now=now: now)  # and stopped
            assert psutil.Process(status.pid).create_time() != pytest.approx(status.process_started, abs=0.5)
            assert nap.status().state is State.RUNNING
    nap.cancel()
    assert nap.status().state is State.CANCELLED


def test_a_clock_that_stands_still_stops_no_start(nap, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    until(nap.start(), lambda status: status.message == "asleep")
    nap.cancel()
    assert nap.status().state is State.CANCELLED


def test_the_same_number_is_another_process_after_a_restart_of_the_machine(nap, monkeypatch):
    mine = identity(os.getpid())
    assert is_alive(mine)
    assert not is_alive({**mine, "boot": "another"})
    assert not is_alive({**mine, "process_started": mine["process_started"] - 1})
    assert not is_alive({**mine, "pid": 2**40})
    assert not is_alive({})
    nap._write_status({"state": "running", **mine, "boot": "another"})
    assert nap.status().state is State.CRASHED
    nap.cancel()  # ends nobody


def test_whoever_starts_it_may_die_before_the_process_is_there(nap):
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    born = identity(dead.pid)
    dead.wait()
    nap._write("process.json", {"starter": born})
    nap._write_status({"state": "starting", "started": time.time()})
    assert nap.status().state is State.CRASHED
    nap._write("process.json", {"starter": identity(os.getpid())})
    assert nap.status().state is State.STARTING


def test_what_a_kill_left_half_written_is_swept(nap):
    for name in (".status.json.ab12cd_9", ".process.json.abcdefgh"):
        (nap.path / name).write_text("half")
    (nap.path / ".adapter.abcdefgh").mkdir()
    (nap.path / ".adapter.abcdefgh" / "file").write_text("half")
    kept = {".keep", ".env.local", "notes.txt"}
    for name in kept:
        (nap.path / name).write_text("mine")
    with nap.working():
        left = {path.name for path in nap.path.iterdir()}
    assert left == kept | {".lock", ".reserve", "process.json"}


def test_a_folder_that_is_removed_while_the_work_goes_on_is_not_made_anew(nap):
    def work() -> None:
        with nap.working() as writer, writer.telling():
            writer.status(state="running")
            shutil.rmtree(nap.path)
            writer.status(message="step 7")

    with pytest.raises(RunError, match=r"nap is gone: it was removed while the nap went on\."):
        work()
    assert not nap.path.exists()


@pytest.mark.parametrize("document", [{}, {"state": "running", "pid": "x"}, {"state": "running", "fraction": -1}, {"state": 7}])
def test_a_status_that_nobody_wrote_is_a_crash_that_says_why(nap, document):
    (nap.path / "status.json").write_text(json.dumps(document))
    status = nap.status()
    assert status.state is State.CRASHED
    assert "status.json is damaged" in status.error
    until(nap.start(), lambda status: status.message == "asleep")


def test_a_status_of_a_later_version_is_read_as_far_as_it_is_known():
    assert Status.from_document({"state": "done", "energy_joules": 7}) == Status(State.DONE)


def test_what_is_written_has_reached_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda source, target: (done.append("rename"), replace(source, target)))
    with atomic_file(tmp_path / "a.json") as temporary:
        temporary.write_text("{}")
        name = str(temporary)
    assert done == [name, "rename", str(tmp_path)]
    done.clear()
    with atomic_file(tmp_path / "a.json", durable=False) as temporary:
        temporary.write_text("{}")
    assert done == ["rename"]


def installed(target: Path) -> None:
    """Our packages as a wheel puts them: in a site-packages folder, beside nothing of the checkout."""
    for package in ("app", "analyzers", "loraxs_core", "sample_models"):
        shutil.copytree(ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))


def shadow(folder: Path) -> None:
    """A folder of the user's with packages of our names in it."""
    for package in ("app", "analyzers", "loraxs_core"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise SystemExit('the wrong package')\n")


def test_a_child_of_an_installed_package_does_not_import_from_where_it_stands(tmp_path):
    site, here = tmp_path / "lib" / "site-packages", tmp_path / "here"
    installed(site)
    shadow(here)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r});"
        "import json, os, loraxs_core.processes as p, pathlib;"
        "assert p.__file__.startswith(sys.path[0]), p.__file__;"
        "log = open('log', 'wb');"
        "child = p.start_module('analyzers.compare.worker', ['/no/such/run'], log);"
        "sys.exit(child.wait())"
    )
    # A .pth file of a virtual environment finds the packages; PYTHONPATH stands for it here.
    environment = os.environ | {"PYTHONPATH": str(site)}
    ended = subprocess.run([sys.executable, "-P", "-c", program], cwd=here, env=environment, capture_output=True, text=True)
    assert (here / "log").read_text().strip() == "There is no run in /no/such/run; `loraxs compare` starts one."
    assert ended.returncode == 2, ended.stderr


def test_a_child_of_a_checkout_runs_its_code_and_honours_the_path(tmp_path):
    shadow(tmp_path / "here")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "extra.py").write_text("import loraxs_core, sys; print(loraxs_core.__file__, sys.flags.safe_path)")
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import loraxs_core.processes as p;"
        "sys.exit(p.start_module('extra', [], open('log', 'wb')).wait())"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "own")}
    subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path / "here", env=environment, check=True)
    assert (tmp_path / "here" / "log").read_text().split() == [str(ROOT / "loraxs_core" / "__init__.py"), "True"]


def test_a_package_in_site_packages_does_not_go_before_the_standard_library(monkeypatch):
    monkeypatch.setattr(processes, "__file__", "/usr/lib/python3/site-packages/loraxs_core/processes.py")
    assert processes._python_path() == {}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        work = Sleeper(tmp_path)
        for attempt in (work.start, lambda: work.working().__enter__()):
            with pytest.raises(RunError, match=f"Cannot write in {tmp_path}: Read-only file system") as raised:
                attempt()
            assert "\n" not in str(raised.value)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_last_word_of_a_bug_points_to_a_log_that_has_it(nap):
    with pytest.raises(ZeroDivisionError), nap.working() as writer, writer.telling():
        _ = 1 / 0
    status = nap.status()
    assert (status.state, "a bug" in status.error) == (State.FAILED, True)
    assert "ZeroDivisionError" in nap.log()
    assert not (nap.path / ".reserve").exists()


def test_progress_is_written_a_few_times_a_second(nap, monkeypatch):
    from loraxs_core.progress import Progress

    written = []
    with nap.working() as writer:
        monkeypatch.setattr(background.WorkFolder, "_write", lambda self, name, document, **kind: written.append(document))
        for step in range(1000):
            writer.progress(Progress(step, 1000, f"step {step}"))
        writer.progress(Progress(1000, 1000, "all"))
    assert len(written) < 20
    assert (written[0]["message"], written[-1]["fraction"]) == ("step 0", 1.0)


def test_a_process_that_the_system_ended_for_want_of_memory(nap, monkeypatch):
    """Its killer leaves no word; the system counts how often it came."""
    for module in (background, processes):
        monkeypatch.setattr(module, "memory_kills", lambda: 3)
    until(nap.start(), lambda status: status.message == "asleep")
    os.kill(nap.status().pid, signal.SIGKILL)
    assert "want of memory" not in until(nap, lambda status: not status.is_running).error
    for module in (background, processes):
        monkeypatch.setattr(module, "memory_kills", lambda: 4)
    assert "the system has ended a process for want of memory since it began" in nap.status().error
    nap.log_path.unlink()
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    gone = identity(dead.pid)
    dead.wait()
    with nap.working() as writer:  # a process that nobody started for it, as one in a terminal
        writer.status(**gone, state="running")
        told = (nap.path / "process.json").read_bytes()
    assert not (nap.path / "process.json").exists()
    (nap.path / "process.json").write_bytes(told)  # as one that is killed leaves it
    assert nap.status().error == "The process of this nap ended without a word. It can be resumed."
    monkeypatch.setattr(processes, "memory_kills", lambda: 5)
    assert "the system has ended a process for want of memory since it began" in nap.status().error
    monkeypatch.undo()
    assert processes.memory_kills() is None or processes.memory_kills() >= 0
