"""Run folders that something happened to: the list shows the sound ones, names the broken and why, soon and without a traceback."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from analyzers.compare import RunFolder, SweepSettings, find_run, list_runs, survey_runs
from loraxs_core.errors import RunError, WorkbenchError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes")
DEEP = "[" * 200_000


@pytest.fixture
def runs(tmp_path):
    """A sound run and one to be damaged, as a sweep leaves them, written by its own classes; no training."""
    for name in ("sound", "hurt"):
        run = RunFolder.create(
            SweepSettings(str(tmp_path), methods=("head-only", "lora"), seeds=2, steps=4), tmp_path / "runs" / name
        )
        with run.working() as writer:
            for trial in run.settings.trials():
                folder = run.trial_folder(trial.id)
                folder.mkdir(parents=True)
                writer.metric({"event": "start", "trial": trial.id})
                writer.metric({**trial.about, "kind": "train", "step": 1, "epoch": 0.1, "value": 0.5})
                numbers = dict.fromkeys(
                    (
                        "adapter_bytes",
                        "file_bytes",
                        "seconds",
                        "train_seconds",
                        "svd_seconds",
                        "svd_share",
                        "peak_memory_bytes",
                    ),
                    1.0,
                )
                record = {**trial.about, **numbers, "rank": trial.rank, "metric": "pearson", "score": 0.5, "validation_score": 0.5,
                          "adapter_parameters": 9, "head_parameters": 3, "state": "done", "error": None}  # fmt: skip
                (folder / "result.json").write_text(json.dumps(record))
            writer.log("it went well")
            writer.last_word(state="done", fraction=1.0, trials_done=4, trials_total=4)
    return tmp_path / "runs"


def edited(name, **changes):
    def damage(run):
        path = run / name
        document = json.loads(path.read_text())
        for key, value in changes.items():
            inside, _, last = key.rpartition("__")
            at = document[inside] if inside else document
            if value is ...:
                del at[last]
            else:
                at[last] = value
        path.write_text(json.dumps(document))

    return damage


def written(name, text):
    return lambda run: (run / name).write_text(text)


def pipe(name):
    def damage(run):
        (run / name).unlink()
        os.mkfifo(run / name)

    return damage


def folder(name):
    def damage(run):
        (run / name).unlink()
        (run / name).mkdir()

    return damage


def huge(name):
    return lambda run: os.truncate(run / name, 2**36)


CONFIG = {
    "no time": edited("config.json", created=...),
    "time in words": edited("config.json", created="yesterday"),
    "time beyond the calendar": edited("config.json", created=1e300),
    "empty": written("config.json", ""),
    "null": written("config.json", "null"),
    "deep": written("config.json", DEEP),
    "deep settings": lambda run: (run / "config.json").write_text(
        (run / "config.json").read_text().replace('"lora"', "[" * 5000 + "]" * 5000)
    ),
    "a later format": edited("config.json", version=2),
    "a later setting": edited("config.json", settings__quantisation="nf4"),
    "a later method": edited("config.json", settings__methods=["lora", "from-the-future"]),
    "settings in words": edited("config.json", settings="stsb"),
    "steps in words": edited("config.json", settings__steps="many"),
    "methods a number": edited("config.json", settings__methods=7),
    "seeds in words": edited("config.json", settings__seeds=["a"]),
    "half a seed": edited("config.json", settings__seeds=[0, 1.5]),
    "a seed that is true": edited("config.json", settings__seeds=[True, False]),
    "targets in numbers": edited("config.json", settings__targets=["query", 3]),
    "a setting twice": lambda run: (run / "config.json").write_text(
        (run / "config.json").read_text().replace('"steps"', '"steps": 9, "steps"')
    ),
    "ten million seeds": edited("config.json", settings__seeds=10_000_000),
    "a seed of 400 digits": edited("config.json", settings__seeds=[int("9" * 400)]),
    "a rate of 400 digits": edited("config.json", settings__learning_rates={"lora": int("9" * 400)}),
    "a plan that is none": edited("config.json", settings__plans={"x": {"format": []}}, settings__methods=["lora-xs"]),
    "ranks a list": edited("config.json", settings__ranks=[1]),
    "a pipe": pipe("config.json"),
    "a folder": folder("config.json"),
    "huge": huge("config.json"),
    "a link to nothing": lambda run: ((run / "config.json").unlink(), (run / "config.json").symlink_to(run / "gone")),
}
INSIDE = {
    f"{name.rpartition('/')[2]} {what}": damage(name)
    for name in ("status.json", "metrics.jsonl", "log.txt", "trials/lora_r8_lr0.002_seed0/result.json")
    for what, damage in {
        "a pipe": pipe,
        "a folder": folder,
        "huge": huge,
        "empty": lambda name: written(name, ""),
        "empty object": lambda name: written(name, "{}"),
        "null": lambda name: written(name, "null"),
        "deep": lambda name: written(name, DEEP),
        "no text": lambda name: lambda run: (run / name).write_bytes(b"\xff\xfe\x00"),
    }.items()
    if not (name == "log.txt" and what == "huge")
} | {
    "state unknown": edited("status.json", state="paused"),
    "state a list": edited("status.json", state=[]),
    "fraction in words": edited("status.json", fraction="half"),
    "fraction beyond": edited("status.json", fraction=7),
    "process in words": edited("status.json", state="running", pid="me"),
    "process of 400 digits": edited("status.json", state="running", pid=int("9" * 400)),
    "trials in words": edited("status.json", trials_done="all"),
    "score in words": edited("trials/lora_r8_lr0.002_seed0/result.json", score="good"),
    "numbers a list": edited("trials/lora_r8_lr0.002_seed0/result.json", adapter_parameters=[1]),
    "a score of 7": edited("trials/lora_r8_lr0.002_seed0/result.json", score=7.0),
    "another seed": edited("trials/lora_r8_lr0.002_seed0/result.json", seed=1),
    "another rate": edited("trials/lora_r8_lr0.002_seed0/result.json", learning_rate=0.1),
    "bytes below none": edited("trials/lora_r8_lr0.002_seed0/result.json", file_bytes=-1.0),
    "score lost": edited("trials/lora_r8_lr0.002_seed0/result.json", score=...),
    "another trial": edited("trials/lora_r8_lr0.002_seed0/result.json", trial="head-only_lr0.003_seed0"),
    "metric unknown": edited("trials/lora_r8_lr0.002_seed0/result.json", metric="luck"),
    "metric a list": edited("trials/lora_r8_lr0.002_seed0/result.json", metric=["pearson"]),
    "a point in words": lambda run: (run / "metrics.jsonl").write_text('{"trial": "a", "step": "first", "value": "low"}\n[1]\n7\n'),
}  # fmt: skip


def looked_through(run: RunFolder) -> None:
    """Everything that a list or a page asks of a run."""
    _ = run.settings, run.created, run.status(), run.log()
    run.metrics(), run.results(), run.summary(), run.failures(), run.remarks()


@pytest.mark.parametrize("what", CONFIG)
def test_a_run_that_cannot_be_read_is_named_with_its_reason_and_hides_no_other(runs, what):
    CONFIG[what](runs / "hurt")
    began = time.monotonic()
    found = survey_runs(runs)
    assert time.monotonic() - began < 5
    assert [run.name for run in found.sound] == ["sound"]
    (broken,) = found.broken
    assert broken.name == "hurt"
    assert str(runs / "hurt" / "config.json") in broken.reason
    assert "\n" not in broken.reason
    looked_through(found.sound[0])
    with pytest.raises(RunError):
        looked_through(find_run(str(runs / "hurt")))


@pytest.mark.parametrize("what", INSIDE)
def test_a_run_with_a_damaged_file_inside_is_still_read(runs, what):
    INSIDE[what](runs / "hurt")
    began = time.monotonic()
    run = next(run for run in list_runs(runs) if run.name == "hurt")
    looked_through(run)
    assert time.monotonic() - began < 5
    assert len(run.results()) == 4
    damaged = (
        "another trial",
        "another seed",
        "another rate",
        "a score of 7",
        "bytes below none",
        "score lost",
        "score in words",
    )
    if "result" in what or what in (*damaged, "numbers a list", "metric unknown", "metric a list"):
        (failure,) = run.failures()
        assert "is damaged" in failure["error"] or "plain file" in failure["error"]
        assert run.result(run.settings.trials()[1]) is None, "it is trained again"
    if what.startswith("status") or what.startswith(("state", "fraction", "process", "trials")):
        status = run.status()
        assert (status.state, "It can be resumed" in status.error) == ("crashed", True)


def test_the_command_and_the_page_name_the_broken_run(runs, tmp_path, monkeypatch, tiny_bert):
    from typer.testing import CliRunner

    from app.cli import app
    from tests.app.pages import page

    monkeypatch.setenv("LORAXS_DATA", str(tmp_path))
    monkeypatch.setenv("LORAXS_CACHE", str(tmp_path / "cache"))
    CONFIG["a later setting"](runs / "hurt")
    said = CliRunner().invoke(app, ["runs"])
    assert said.exit_code == 0, said.output
    assert "sound" in said.output
    assert "quantisation" in said.output.replace("\n", " ")
    listed = json.loads(CliRunner().invoke(app, ["runs", "--json"]).output)
    assert [entry["state"] for entry in listed] == ["done", "unreadable"]
    test = page(tiny_bert, "compare")
    assert not test.exception
    assert "1 run folder cannot be read" in [expander.label for expander in test.expander]
    assert any("quantisation" in element.value for element in test.text)


def test_a_damaged_record_is_no_result_and_a_deleted_list_is_empty(runs):
    shutil.rmtree(runs / "hurt" / "trials")
    assert len(RunFolder(runs / "hurt").results()) == 0
    with pytest.raises(WorkbenchError):
        RunFolder(runs / "nothing")
