"""A trial that is cut off goes on from its checkpoint and ends where an unbroken one does; what cannot be believed is not used."""

from __future__ import annotations

import errno
import json
import os
import pickle
import time

import pytest
import torch
from safetensors import safe_open

from analyzers.compare import trial_checkpoint
from analyzers.compare.opened import Opened
from analyzers.compare.tasks import open_task
from analyzers.compare.trial import run_trial
from analyzers.compare.trial_settings import Listener, TrialSettings
from analyzers.methods import METHODS
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.progress import Cancellation
from tests.analyzers.compare_helpers import SMALL, sentiment_csv, tiny_model

STEPS, CUT = 12, 7
SAME = ("score", "validation_score", "test_loss", "adapter_parameters", "head_parameters", "adapter_bytes")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return Checkpoint.open(tiny_model(tmp_path_factory.mktemp("classifier")))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return open_task(f"csv:{sentiment_csv(tmp_path_factory.mktemp('data') / 'film.csv')}")


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch):
    monkeypatch.setattr(trial_checkpoint, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(trial_checkpoint, "SHARE", 1e9)


def settings(method, **changes):
    chosen = {
        "steps": STEPS,
        "test_examples": 16,
        "validation_examples": 16,
        "batch": 8,
        "sequence": 32,
        "rank": 4 if METHODS[method].ranked else None,
        "options": SMALL.get(method, {}),
        "evaluations": 3,
    }
    return TrialSettings(method, 0, 1e-2, 1e-2, device="cpu", **{**chosen, **changes})


def cut_off(chosen, checkpoint, film, folder, at=CUT):
    """Trains until step `at` has ended, and no further."""
    steps = []

    def advance(cost, message):
        if message.startswith("step"):
            steps.append(message)

    with pytest.raises(Cancellation):
        run_trial(
            chosen, Opened(checkpoint, film, film.read()), folder, Listener(advance=advance, cancelled=lambda: len(steps) >= at)
        )


def points(listened):
    return [(point["kind"], point["step"], point["value"]) for point in listened]


QUICK = ("lora-xs", "pissa", "full")


@pytest.mark.parametrize("method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS])
def test_a_trial_that_was_cut_off_ends_as_one_that_was_not(method, classifier, film, tmp_path):
    chosen = settings(method)
    unbroken, resumed, began = [], [], []
    whole = run_trial(chosen, Opened(classifier, film, film.read()), tmp_path / "whole", Listener(report=unbroken.append))
    cut_off(chosen, classifier, film, tmp_path / "cut")
    assert (tmp_path / "cut" / trial_checkpoint.NAME).exists()
    torch.rand(17)  # another process has drawn other numbers
    listener = Listener(report=resumed.append, began=began.append)
    again = run_trial(chosen, Opened(classifier, film, film.read()), tmp_path / "cut", listener)
    assert began == [CUT - 1]  # the state before the step that was the last
    assert [again[name] for name in SAME] == [whole[name] for name in SAME]
    assert points(resumed) == [point for point in points(unbroken) if point[1] >= CUT]
    assert not (tmp_path / "cut" / trial_checkpoint.NAME).exists()
    saved = [folder / "adapter" / "adapter_model.safetensors" for folder in (tmp_path / "whole", tmp_path / "cut")]
    if method != "full":
        assert saved[0].read_bytes() == saved[1].read_bytes()


def test_time_counts_from_the_first_process_on(classifier, film, tmp_path):
    chosen = settings("lora")
    cut_off(chosen, classifier, film, tmp_path)
    with safe_open(tmp_path / trial_checkpoint.NAME, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    record = run_trial(chosen, Opened(classifier, film, film.read()), tmp_path)
    assert record["train_seconds"] > about["seconds"] - about["evaluation_seconds"] > 0


def damaged(how, path):
    content = bytearray(path.read_bytes())
    if how == "a flipped bit":
        content[-20] ^= 1
    elif how == "cut short":
        del content[-100:]
    elif how == "a pickle":

        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(path.parent / "pickle-was-read"),)

        content = pickle.dumps(Evil())
    elif how == "empty":
        content = b""
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["a flipped bit", "cut short", "a pickle", "empty", "another rank"])
def test_a_checkpoint_that_cannot_be_believed_is_noted_and_not_used(how, classifier, film, tmp_path):
    chosen = settings("lora")
    cut_off(settings("lora", rank=2) if how == "another rank" else chosen, classifier, film, tmp_path / "cut")
    damaged(how, tmp_path / "cut" / trial_checkpoint.NAME)
    notes, began = [], []
    again = run_trial(
        chosen, Opened(classifier, film, film.read()), tmp_path / "cut", Listener(note=notes.append, began=began.append)
    )
    assert again["state"] == "done"
    assert began == [0]
    assert "cannot be used" in notes[0]
    assert not (tmp_path / "cut" / "pickle-was-read").exists()


def test_checkpoints_take_a_small_share_of_the_time(classifier, film, tmp_path, monkeypatch):
    monkeypatch.setattr(trial_checkpoint, "SHARE", 0.05)
    written = []
    write = trial_checkpoint.Checkpoints.write

    def slow(self, state):
        written.append(state.global_step)
        write(self, state)
        time.sleep(0.2)

    monkeypatch.setattr(trial_checkpoint.Checkpoints, "write", slow)
    run_trial(settings("head-only"), Opened(classifier, film, film.read()), tmp_path)
    assert written == [1], "after one of 0.2 s, four seconds of training come first"


def test_a_checkpoint_that_cannot_be_written_is_noted_and_the_trial_ends_well(classifier, film, tmp_path, monkeypatch):
    def full(tensors, path, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trial_checkpoint, "save_file", full)
    notes = []
    record = run_trial(settings("lora"), Opened(classifier, film, film.read()), tmp_path, Listener(note=notes.append))
    assert record["state"] == "done"
    assert len(notes) == 1
    assert "No space left" in notes[0]
