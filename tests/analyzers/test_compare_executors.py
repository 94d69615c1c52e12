"""Pieces of a sweep in other processes: what they tell, a real Ray cluster with a worker killed, two processes of accelerate."""

from __future__ import annotations

import functools
import json
import os
import signal
import time

import psutil
import pytest

from analyzers.compare import RunFolder, SweepSettings, run_sweep, start_sweep
from analyzers.compare.apart import EVENTS, Heard, do
from loraxs_core.errors import SettingsError
from loraxs_core.progress import Cancellation
from tests.analyzers.compare_helpers import sentiment_csv, tiny_model

SAME = ["trial", "score", "validation_score", "test_loss", "adapter_parameters"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model that leaves nothing out by chance, so that one process and two compute the same."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("executors")
    sizes = {"vocab_size": 22, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(**sizes, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    import torch

    torch.manual_seed(0)
    return str(tiny_model(folder / "model", model=BertModel(config))), f"csv:{sentiment_csv(folder / 'film.csv')}"


def quick(place, **changes) -> SweepSettings:
    model, task = place
    chosen = {"methods": ("lora-xs", "lora"), "rank": 4, "steps": 8, "batch": 8, "sequence": 16, "evaluations": 2}
    return SweepSettings(model, task, **{**chosen, "device": "cpu", "threads": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"executor": "slurm"}, "Trials cannot be run by 'slurm'; choose among local, ray"),
        ({"executor": "ray", "processes": 2}, "on a Ray cluster or by several processes each, not both"),
        ({"processes": 3}, "A batch of 8 cannot be shared alike by 3 processes; take 9"),
        ({"processes": 0}, "The number of processes must be a whole number of at least 1"),
    ],
)
def test_executors_that_cannot_be_are_refused_in_a_sentence(changes, sentence, place):
    with pytest.raises(SettingsError, match=sentence):
        quick(place, **changes)


def test_a_piece_tells_what_it_does_and_leaves_what_a_local_one_leaves(place, tmp_path):
    local = run_sweep(quick(place), tmp_path / "local")
    apart = RunFolder.create(quick(place), tmp_path / "apart")
    trial = apart.settings.trials()[0]
    heard = Heard(apart.trial_folder(trial.id))
    apart.trial_folder(trial.id).mkdir(parents=True)
    for name in (".checkpoint.safetensors.fut6qk14", ".tmpYco99T"):  # of a process that was killed while it wrote
        (apart.trial_folder(trial.id) / name).touch()
    do(str(apart.path), "trial 0")
    assert {path.name for path in apart.path.rglob("trials/*/.*")} <= {".lock"}
    events = list(heard.lines())
    assert events[0] == {"begin": os.getpid()}
    assert events[-1] == {"ended": "done", "error": ""}
    assert {"began": 0} in events
    kinds = [event["metric"]["kind"] for event in events if "metric" in event]
    assert (kinds.count("train"), kinds.count("eval")) == (8, 2)
    assert sum(event.get("advance", 0) for event in events) == pytest.approx(trial.cost(20, 20), rel=0.2)
    assert [apart.result(trial)[name] for name in SAME] == [local.result(trial)[name] for name in SAME]
    heard.forget()
    assert not (apart.trial_folder(trial.id) / EVENTS).exists()


def test_a_piece_that_fails_or_is_to_stop_says_so(place, tmp_path):
    run = RunFolder.create(quick(place, ranks={"lora-xs": 33}), tmp_path / "run")
    trial, other = run.settings.trials()
    heard = Heard(run.trial_folder(trial.id))
    do(str(run.path), "trial 0")
    *_, last = heard.lines()
    assert last["ended"] == "failed"
    assert "32, not 33" in last["error"]
    heard = Heard(run.trial_folder(other.id))
    (run.path / "cancel").touch()
    do(str(run.path), "trial 1")
    *_, last = heard.lines()
    assert last["ended"] == "cancelled"


def test_a_line_that_is_being_written_waits(tmp_path):
    heard = Heard(tmp_path)
    (tmp_path / EVENTS).write_bytes(b'{"began": 3}\n{"adva')
    assert list(heard.lines()) == [{"began": 3}]
    (tmp_path / EVENTS).write_bytes(b'{"began": 3}\n{"advance": 1.0}\nnot JSON\n')
    assert list(heard.lines()) == [{"advance": 1.0}]
    assert list(heard.lines()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_joins_a_ray_cluster_is_stopped_as_before():
    """Ray takes SIGTERM over: a run that was cancelled then said that it had met a bug."""
    import sys
    from types import SimpleNamespace

    from loraxs_core.ray_cluster import join_or_start

    def init(stops=False, **_):
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        if stops:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    def mine(*_):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        join_or_start(SimpleNamespace(is_initialized=lambda: False, init=init), 2)
        assert signal.getsignal(signal.SIGTERM) is mine
        with pytest.raises(Cancellation):
            join_or_start(SimpleNamespace(is_initialized=lambda: False, init=functools.partial(init, stops=True)), 2)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_run_on_a_ray_cluster_is_cancelled_in_five_seconds(place, tmp_path):
    pytest.importorskip("ray")
    run = start_sweep(quick(place, executor="ray", steps=100_000, methods=("lora-xs", "lora")), tmp_path / "ray")
    deadline = time.monotonic() + 120
    while "step" not in run.status().message and time.monotonic() < deadline:
        assert run.status().is_running, run.log()
        time.sleep(0.1)
    began = time.monotonic()
    run.cancel()
    assert time.monotonic() - began < 5
    status = run.status()
    assert (status.state, status.error) == ("cancelled", "")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_ray_cluster_that_loses_a_worker_ends_with_the_scores_of_a_local_sweep(place, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("LORAXS_CHECKPOINT_SECONDS", "0.1")
    settings = {"steps": 600, "seeds": 2, "methods": ("lora-xs", "lora"), "evaluations": 3}
    local = run_sweep(quick(place, **settings), tmp_path / "local")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    killed, together = [], []

    def watch(progress):
        run = RunFolder(tmp_path / "ray")
        folders = [folder for folder in (run.path / "trials").glob("*") if (folder / EVENTS).exists()]
        together.append(len(folders))
        ready = [folder for folder in folders if (folder / "checkpoint.safetensors").exists()]
        if ready and not killed:
            first = json.loads((ready[0] / EVENTS).read_text().splitlines()[0])
            killed.append(first["begin"])
            os.kill(first["begin"], signal.SIGKILL)

    try:
        run = run_sweep(quick(place, executor="ray", **settings), tmp_path / "ray", watch)
    finally:
        ray.shutdown()
    assert killed
    assert killed[0] != os.getpid()
    assert max(together) == 2, "two at a time"
    assert "goes on at step" in run.log(), "from its last checkpoint, not from its beginning"
    assert run.status().state == "done"
    assert run.results()[SAME].equals(local.results()[SAME])
    steps = run.metrics().query("kind == 'train'").groupby("trial")["step"]
    assert all(values.is_unique for _, values in steps)


@pytest.mark.slow
def test_two_processes_of_accelerate_train_as_one_does(place, tmp_path):
    settings = {"methods": ("lora-xs",), "steps": 12, "seeds": 1}
    one = run_sweep(quick(place, **settings), tmp_path / "one")
    two = run_sweep(quick(place, processes=2, **settings), tmp_path / "two")
    assert two.status().state == "done", two.log()
    alone, shared = (run.metrics().query("kind == 'train'")["value"].to_numpy() for run in (one, two))
    assert shared == pytest.approx(alone, abs=2e-5)
    for name in ("score", "validation_score", "test_loss"):
        assert two.results()[name][0] == pytest.approx(one.results()[name][0], abs=1e-4)
    assert two.results()["adapter_parameters"][0] == one.results()["adapter_parameters"][0]
    left = {path.name for path in two.path.rglob(".*")}
    assert left <= {".lock"}


def until(true, seconds=500.0):
    """Waits for `true()`, and gives it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_what_was_launched_ends_with_its_sweep_and_goes_on_from_its_checkpoint(place, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAXS_CHECKPOINT_SECONDS", "0.1")
    settings = quick(place, methods=("lora-xs",), steps=800, processes=2, evaluations=1)
    run = RunFolder.create(settings, tmp_path / "run")
    folder = run.trial_folder(run.settings.trials()[0].id)

    def training():
        """The process that trains now, once it has made a step and there is a checkpoint."""
        if not (folder / "checkpoint.safetensors").exists() or not (folder / EVENTS).exists():
            return None
        lines = (folder / EVENTS).read_text().splitlines()
        begun = [number for number, line in enumerate(lines) if '"begin"' in line]
        return json.loads(lines[begun[-1]])["begin"] if begun and any("step" in line for line in lines[begun[-1] :]) else None

    run.start()
    pid = until(training)
    began = time.monotonic()
    run.cancel()
    assert time.monotonic() - began < 5
    assert run.status().state == "cancelled"
    until(lambda: not psutil.pid_exists(pid), 5)
    run.start()
    pid = until(training)
    lost, message = pid, "ended without a word; it is started again"
    os.kill(lost, signal.SIGKILL)  # of two that train together
    until(lambda: message in run.log(10_000))
    pid = until(lambda: found if (found := training()) != lost else None)
    os.kill(run.status().pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid), 20)
    assert run.status().state == "crashed"
    run_sweep(run)
    assert run.status().state == "done"
    assert "goes on at step" in run.log(10_000)
    assert run.results()["state"][0] == "done"
