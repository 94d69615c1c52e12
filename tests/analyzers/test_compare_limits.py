"""What a run meets on a machine: other data when it goes on, no room, no memory, a second process. One sentence and a true folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from analyzers.compare import RunFolder, SweepSettings, run_sweep, start_sweep
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.progress import Cancellation
from tests.analyzers.compare_helpers import sentiment_csv, tiny_model

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of processes")


@pytest.fixture
def place(tmp_path):
    return tiny_model(tmp_path / "model"), sentiment_csv(tmp_path / "film.csv", 60)


def settings(place, **changes) -> SweepSettings:
    model, file = place
    chosen = {"methods": ("head-only", "lora-xs"), "rank": 4, "steps": 3, "batch": 8, "sequence": 16, "evaluations": 1}
    return SweepSettings(str(model), f"csv:{file}", **{**chosen, "device": "cpu", "threads": 1, **changes})


def after_one_trial(place, folder) -> RunFolder:
    """A run that was cancelled when its first trial had finished."""
    run = RunFolder.create(settings(place), folder)
    with pytest.raises(Cancellation):
        run_sweep(run, cancelled=lambda: len(run.results()) == 1)
    assert list(run.results()["state"]) == ["done"]
    return run


def change_the_data(model: Path, file: Path) -> None:
    file.write_text(file.read_text().replace("negative", "negativ"))


def change_a_label(model: Path, file: Path) -> None:
    lines = file.read_text().splitlines()
    lines[2], lines[3] = lines[2].replace("positive", "negative"), lines[3].replace("negative", "positive")
    file.write_text("\n".join(lines) + "\n")


def change_a_weight(model: Path, file: Path) -> None:
    """One bit; the file keeps its length and its time."""
    path = model / "model.safetensors"
    about, content = path.stat(), bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def change_the_tokenizer(model: Path, file: Path) -> None:
    path = model / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false') + "\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_the_data, "its data has changed since it began"),
        (change_a_label, "its data has changed since it began"),
        (change_a_weight, "model.safetensors of its model has changed since it began"),
        (change_the_tokenizer, "tokenizer.json of its model has changed since it began"),
    ],
)
def test_a_run_does_not_go_on_with_other_inputs(place, tmp_path, change, said):
    run = after_one_trial(place, tmp_path / "run")
    kept = shutil.copytree(place[0], tmp_path / "kept"), place[1].read_text()
    change(*place)
    with pytest.raises(RunError, match=said) as raised:
        run_sweep(run)
    assert "\n" not in str(raised.value)
    assert run.status().error == str(raised.value)
    assert list(run.results()["state"]) == ["done"], "what it had is kept"
    shutil.copytree(kept[0], place[0], dirs_exist_ok=True)
    place[1].write_text(kept[1])
    assert list(run_sweep(run).results()["state"]) == ["done", "done"]


def began_with(run, **versions: str) -> None:
    path = run.path / "inputs.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "software": {**known["software"], **versions}}))


@pytest.mark.parametrize("name", ["torch", "transformers", "peft", "loraxs-workbench", "code"])
def test_a_run_does_not_go_on_with_software_that_may_score_differently(place, tmp_path, name):
    run = after_one_trial(place, tmp_path / "run")
    began_with(run, **{name: "1.0.0"})
    with pytest.raises(
        RunError, match=r"it began with .*1\.0\.0, and this is \w.*`loraxs runs \S+/run --resume --force`"
    ) as raised:
        run_sweep(run)
    assert "\n" not in str(raised.value)
    if name == "peft":
        (run.path / "inputs.json").write_text("{")
        with pytest.raises(RunError, match="cannot be told; start a new one"):
            run_sweep(run)


def test_other_software_may_be_taken_and_the_run_says_so(place, tmp_path):
    from typer.testing import CliRunner

    from app.cli import app

    run = after_one_trial(place, tmp_path / "run")
    began_with(run, torch="1.0.0")
    said = CliRunner().invoke(app, ["runs", str(run.path), "--force"])
    assert isinstance(said.exception, SettingsError)
    run.accept_software()
    finished = run_sweep(run)
    assert list(finished.results()["state"]) == ["done", "done"]
    (remark,) = finished.remarks()
    assert remark.startswith("The run began with torch 1.0.0, and this is ")
    assert remark in CliRunner().invoke(app, ["runs", str(run.path)]).output.replace("\n", " ")


def test_a_patch_of_a_library_is_no_reason_to_stop(place, tmp_path):
    run = after_one_trial(place, tmp_path / "run")
    now = json.loads((run.path / "inputs.json").read_text())["software"]
    major, minor = now["torch"].split(".")[:2]
    began_with(run, torch=f"{major}.{minor}.99", numpy="1.0.0", python="3.11.0")
    finished = run_sweep(run)
    assert list(finished.results()["state"]) == ["done", "done"]
    assert [
        f"began with {name}" in remark for name, remark in zip(("numpy", "python", "torch"), finished.remarks(), strict=True)
    ]
    assert "began with numpy 1.0.0" in finished.log()


def test_the_same_out_twice_at_once_is_one_run(place, tmp_path):
    ends, chosen = [], settings(place, steps=30)

    def begin():
        try:
            ends.append(start_sweep(chosen, tmp_path / "run"))
        except RunError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(end for end in ends if isinstance(end, str)) == ["The run run is running already."] * 2
    run = RunFolder(tmp_path / "run")
    with pytest.raises(RunError, match="running already"):
        run_sweep(chosen, tmp_path / "run")
    assert run.status().is_running
    run.cancel()
    assert run.status().state == "cancelled"


def test_runs_that_are_made_in_one_moment_have_a_folder_each(place, own_folders):
    made, chosen = [], [settings(place, steps=3 + number % 2) for number in range(6)]
    threads = [threading.Thread(target=lambda one=one: made.append(RunFolder.create(one))) for one in chosen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run.path for run in made}) == 6
    assert sorted(run.settings.steps for run in made) == [3, 3, 3, 4, 4, 4]


CHILD = """
import resource, sys
from analyzers.compare import trial, trial_checkpoint
from analyzers.compare.runs import RunFolder
from analyzers.compare.sweep import run_sweep
from loraxs_core.background import process_main
kind, extra = sys.argv[2], int(sys.argv[3])
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() if kind == "RLIMIT_AS" else 0
resource.setrlimit(getattr(resource, kind), (now + extra, now + extra))
sys.exit(process_main(lambda: run_sweep(RunFolder(sys.argv[1]))))
"""


def limited(run: RunFolder, kind: str, extra: int) -> int:
    command = [sys.executable, "-c", CHILD, str(run.path), kind, str(extra)]
    return subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, timeout=300).returncode


def test_files_that_may_not_grow_are_one_sentence_and_the_run_goes_on_later(place, tmp_path):
    """RLIMIT_FSIZE, which a full quota is like: adapters and heads are larger than it, status and records are not."""
    run = RunFolder.create(settings(place, methods=("lora",), ranks={"lora": 32}), tmp_path / "run")
    assert limited(run, "RLIMIT_FSIZE", 40_000) == 2
    status = run.status()
    assert status.state == "failed"
    assert "File too large" in status.error or "disk is full" in status.error
    assert "\n" not in status.error
    assert not [path for path in run.path.rglob(".*") if path.name != ".lock"]
    assert list(run_sweep(run).results()["state"]) == ["done"]


def test_a_trial_without_memory_is_one_sentence_and_the_others_go_on(place, tmp_path):
    """`ulimit -v`: an adapter of tens of gigabytes fails, between trials that fit."""
    chosen = settings(place, methods=("lora", "head-only"), ranks={"lora": 10_000_000})
    run = RunFolder.create(chosen, tmp_path / "run")
    assert limited(run, "RLIMIT_AS", 2 * 1024**3) == 0, run.log()
    assert run.status().state == "done"
    assert run.status().message == "1 of 2 trials failed"
    (failure,) = run.failures()
    assert failure["error"] == "LoRA ran out of memory; use a smaller batch or fewer tokens a text."
    assert list(run.results()["state"]) == ["failed", "done"]


def test_a_folder_of_runs_that_cannot_be_written_is_one_sentence(place, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        run = RunFolder.create(settings(place), disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        monkeypatch.setenv("LORAXS_DATA", str(disk))
        for attempt in (
            lambda: start_sweep(settings(place)),
            lambda: start_sweep(settings(place), disk / "other"),
            run.start,
            lambda: run_sweep(run),
        ):
            with pytest.raises(RunError, match="Read-only file system") as raised:
                attempt()
            assert "\n" not in str(raised.value)
        assert run.status().state == "new"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
