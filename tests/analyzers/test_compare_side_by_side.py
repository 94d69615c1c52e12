"""Trials side by side on this machine: when that is chosen, that it changes no result, and what a killed process costs."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time

import psutil
import pytest

from analyzers.compare import RunFolder, SweepSettings, run_sweep
from analyzers.compare import spread as spreading
from analyzers.compare.forecast import forecast, measurement
from analyzers.compare.spread import spread, spread_as
from loraxs_core.errors import SettingsError
from tests.analyzers.compare_helpers import sentiment_csv, tiny_model

SAME = ["trial", "score", "validation_score", "test_loss", "adapter_parameters", "threads"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    return str(tiny_model(folder / "model")), f"csv:{sentiment_csv(folder / 'film.csv')}"


@pytest.fixture
def free(monkeypatch):
    """A machine of two cores with 16 GiB free, where nothing chooses the threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(spreading, "_cores", lambda: 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 16 * 1024**3}))


def quick(place, **changes) -> SweepSettings:
    model, task = place
    chosen = {"methods": ("lora-xs", "lora"), "rank": 4, "steps": 8, "batch": 8, "sequence": 16, "evaluations": 2}
    return SweepSettings(model, task, **{**chosen, "device": "cpu", **changes})


def test_long_comparisons_of_small_models_run_side_by_side(place, free):
    found = spread(quick(place, steps=400))
    assert (found.workers, found.threads) == (2, 1)
    assert dataclasses.replace(found, workers=None, threads=None) == quick(place, steps=400)


@pytest.mark.parametrize(
    "changes", [{}, {"steps": 800, "methods": ("lora",)}, {"steps": 400, "threads": 2}, {"steps": 400, "workers": 1}, {"steps": 400, "processes": 2}],
    ids=["short", "one trial", "threads said", "workers said", "processes said"],
)  # fmt: skip
def test_others_run_one_after_the_other(changes, place, free):
    assert spread(quick(place, **changes)) == quick(place, **changes)


def test_no_more_at_a_time_than_memory_has_room_for(place, free, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 3 * 1024**3}))
    assert spread(quick(place, steps=400)).workers is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 16 * 1024**3}))
    assert spread(quick(place, steps=400)).workers is None


def test_a_run_keeps_the_choice_that_it_was_begun_with(place, free, tmp_path, monkeypatch):
    asked = quick(place, steps=400)
    first = RunFolder.create(asked, tmp_path / "run")
    monkeypatch.setattr(spreading, "_cores", lambda: 1)
    again = RunFolder.create(asked, tmp_path / "run")
    assert (again.settings.workers, again.settings.threads) == (first.settings.workers, first.settings.threads) == (2, 1)
    assert spread_as(quick(place, threads=4), first.settings).threads == 4
    assert measurement(spread_as(asked, first.settings)).workers == 2


def test_torch_is_not_imported_to_hear_that_a_build_without_cuda_has_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import would fail
    monkeypatch.setattr(spreading, "version", lambda package: "2.13.0+cpu")
    assert not spreading._on_gpu("auto")
    monkeypatch.setattr(spreading, "version", lambda package: "2.13.0")
    with pytest.raises(ImportError):
        spreading._on_gpu("auto")


def test_workers_and_processes_are_not_both(place):
    with pytest.raises(SettingsError, match="leave out the number of workers or of processes"):
        quick(place, workers=2, processes=2)


def test_side_by_side_gives_what_one_after_the_other_gives(place, tmp_path):
    alone = run_sweep(quick(place, threads=1), tmp_path / "alone")
    beside = run_sweep(quick(place, threads=1, workers=2), tmp_path / "beside")
    assert beside.results()[SAME].to_dict() == alone.results()[SAME].to_dict()
    parts = [alone.metrics()[["trial", "kind", "step", "value"]], beside.metrics()[["trial", "kind", "step", "value"]]]
    parts = [part.sort_values(["trial", "kind", "step"], ignore_index=True) for part in parts]
    assert parts[0].equals(parts[1])
    assert not [child for child in psutil.Process().children() if "analyzers.compare.piece" in " ".join(child.cmdline())]
    expected = forecast(beside.settings, [beside])
    assert expected.peak == pytest.approx(2 * max(beside.results()["peak_memory_bytes"]))
    took = max(map(beside.result, beside.trials()), key=lambda entry: entry["seconds"])["seconds"]
    assert (
        took <= expected.seconds < sum(entry["seconds"] for entry in map(beside.result, beside.trials())) + 300
    )  # starting the processes, on a busy machine


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_process_costs_what_it_did_since_its_checkpoint(place, tmp_path, monkeypatch):
    alone = run_sweep(quick(place, threads=1, steps=1200), tmp_path / "alone")
    monkeypatch.setenv("LORAXS_CHECKPOINT_SECONDS", "0.2")
    run = RunFolder.create(quick(place, threads=1, workers=2, steps=1200), tmp_path / "beside").start()
    trial = run.settings.trials()[0]
    deadline = time.monotonic() + 120
    while not (run.trial_folder(trial.id) / "checkpoint.safetensors").is_file():
        assert time.monotonic() < deadline, run.log_path.read_text()
        time.sleep(0.02)
    found = [
        one for one in psutil.process_iter(["cmdline"])
        if str(run.path) in (one.info["cmdline"] or []) and "analyzers.compare.piece" in one.info["cmdline"]
    ]  # fmt: skip
    for process in found:
        process.send_signal(signal.SIGKILL)
    while run.status().is_running:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert run.status().state == "done", run.status().error
    assert "ended without a word; it is started again. It ended by SIGKILL" in run.log_path.read_text()
    assert "goes on at step" in run.log_path.read_text()
    assert run.results()[SAME].to_dict() == alone.results()[SAME].to_dict()
