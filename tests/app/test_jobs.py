"""Long work in a process of its own: it runs on, is found again, stops when asked, and says why it failed."""

import json
import os

import pytest

from app import jobs
from tests.app.pages import ended


def test_there_is_no_job_before_one_is_started(own_folders):
    assert jobs.status("scan", "nothing") is None


def test_a_scan_runs_to_its_end_and_fills_the_cache(own_folders, tiny_bert):
    from analyzers.spectra import cached
    from loraxs_core.checkpoint import Checkpoint

    jobs.start("scan", str(tiny_bert), "tiny")
    assert jobs.status("scan", "tiny").is_running
    last = ended("scan", "tiny")
    assert (last.state, last.fraction, last.error) == ("done", 1.0, "")
    assert len(cached(Checkpoint.open(tiny_bert)).layers) == len(Checkpoint.open(tiny_bert).linear)
    jobs.forget("scan", "tiny")
    assert jobs.status("scan", "tiny") is None


def test_a_task_is_measured_and_the_file_is_there(own_folders, tmp_path):
    from analyzers.ranks import Signals
    from tests.analyzers.compare_helpers import tiny_decoder

    lines = [json.dumps({"ask": f"after {word} comes", "say": " two"}) for word in ("one", "two", "three", "four") * 10]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = {"task": f"data:{tmp_path / 'talk.jsonl'}", "columns": {"prompt": "ask", "completion": "say"}}
    out = tmp_path / "signals.json"
    jobs.start("measure", str(tiny_decoder(tmp_path / "model")), "tiny", out=str(out), batches=4, batch=4, top=8, **task)
    last = ended("measure", "tiny")
    assert last.state == "done", last.error
    found = Signals.load(out)
    assert (found.batches, set(found.curves)) == (4, {"gradient", "adam", "fisher", "warm-up", "activation"})


def test_a_failure_is_one_sentence(own_folders, tmp_path):
    jobs.start("scan", str(tmp_path / "missing" / "model"), "missing")
    last = ended("scan", "missing")
    assert last.state == "failed"
    assert "missing" in last.error
    assert "\n" not in last.error


def test_a_job_that_was_asked_to_stop_stops(own_folders, tiny_bert):
    place = jobs.folder("scan", "tiny")
    jobs.start("scan", str(tiny_bert), "tiny")
    jobs.cancel("scan", "tiny")
    assert (place / "cancel").exists()
    assert ended("scan", "tiny").state == "cancelled"
    jobs.start("scan", str(tiny_bert), "tiny")
    assert ended("scan", "tiny").state == "done"


def test_starting_a_running_job_again_changes_nothing(own_folders, tiny_bert):
    jobs.start("scan", str(tiny_bert), "tiny")
    process = json.loads((jobs.folder("scan", "tiny") / "process.json").read_text())
    jobs.start("scan", str(tiny_bert), "tiny")
    assert json.loads((jobs.folder("scan", "tiny") / "process.json").read_text()) == process
    ended("scan", "tiny")


@pytest.mark.parametrize("process", [{"pid": 2**22 + 1, "process_started": 1.0}, {"pid": 1, "process_started": 1e9}])
def test_a_process_that_is_gone_without_a_word_has_crashed(own_folders, process):
    place = jobs.folder("scan", "tiny")
    place.mkdir(parents=True)
    (place / "process.json").write_text(json.dumps(process))
    (place / "status.json").write_text(json.dumps({"state": "running", "fraction": 0.5}))
    now = jobs.status("scan", "tiny")
    assert now.state == "crashed"
    assert "log.txt" not in now.error, "there is none to look into"
    (place / "log.txt").write_text("Traceback")
    assert "log.txt" in jobs.status("scan", "tiny").error


def test_a_bug_is_told_as_one_and_the_log_holds_its_traceback(own_folders, tiny_bert):
    jobs.start("scan", str(tiny_bert), "tiny", no_such_option=True)
    last = ended("scan", "tiny")
    assert last.state == "failed"
    assert "a bug" in last.error
    assert "Traceback" in (jobs.folder("scan", "tiny") / "log.txt").read_text()


def run(folder: str) -> None:
    jobs.run_job(jobs.Job(folder))


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("writes", [(6,), pytest.param((1, 3, 10), marks=pytest.mark.slow)], ids=str)
def test_a_scan_that_is_killed_at_a_write_ends_with_the_same_numbers(writes, own_folders, tiny_bert, monkeypatch):
    from analyzers.spectra import cached
    from loraxs_core.checkpoint import Checkpoint
    from tests.kills import killed

    def made(name: str) -> jobs.Job:
        monkeypatch.setenv("LORAXS_CACHE", str(own_folders / name))
        job = jobs.Job(own_folders / "jobs" / name)
        job.path.mkdir(parents=True)
        (job.path / "job.json").write_text(json.dumps({"kind": "scan", "model": str(tiny_bert), "options": {}}))
        return job

    def numbers() -> dict:
        layers = cached(Checkpoint.open(tiny_bert)).layers
        return {name: layer.singular_values.tobytes() for name, layer in layers.items()}

    job = made("unbroken")
    assert not killed(run, job.path, None)
    unbroken = numbers()
    for at in writes:
        job = made(str(at))
        assert killed(run, job.path, at)
        assert job.status().state in ("new", "crashed")
        assert not killed(run, job.path, None)
        assert job.status().state == "done"
        assert numbers() == unbroken
        assert {path.name for path in job.path.iterdir() if path.name.startswith(".")} == {".lock"}


def test_two_pages_that_start_a_job_at_once_start_it_once(own_folders, monkeypatch):
    """The second comes while the first clears the folder of the job before."""
    import shutil
    import subprocess
    import sys
    import threading
    import time

    from loraxs_core import background

    begun = []

    def start(*_, **__):
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True))
        return begun[-1]

    remove = shutil.rmtree
    monkeypatch.setattr(background, "start_module", start)
    monkeypatch.setattr(jobs.shutil, "rmtree", lambda *given, **named: (time.sleep(0.3), remove(*given, **named)))
    pages = [threading.Thread(target=jobs.start, args=("scan", "minilm", "at once")) for _ in range(4)]
    try:
        for one in pages:
            one.start()
        for one in pages:
            one.join(30)
        assert len(begun) == 1
        jobs.forget("scan", "at once")  # it runs
        assert jobs.status("scan", "at once").is_running
    finally:
        for process in begun:
            process.kill()
            process.wait()
