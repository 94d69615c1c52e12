"""The command that a comparison's settings are told as."""

from __future__ import annotations

import pytest
import typer

from analyzers.compare import SweepSettings
from app.options.data import DataOptions, count_or_all
from app.options.training import TrainingOptions
from app.reproduce.sweeps import command
from loraxs_core.errors import SettingsError


def test_all_examples_can_be_asked_for():
    assert DataOptions(validation_examples="all").scored["validation_examples"] is None
    assert DataOptions().scored == {"evaluations": 4, "validation_examples": 256, "test_examples": None}
    assert count_or_all("12") == 12
    with pytest.raises(typer.BadParameter, match="whole number or all, not 'some'"):
        count_or_all("some")


def test_the_command_says_what_differs_from_its_defaults(minilm):
    assert command(SweepSettings("minilm"), minilm).endswith("--sequence 128 --out DIR")
    asked = SweepSettings("minilm", validation_examples=None, test_examples=64, tune_lr=True, processes=2)
    words = command(asked, minilm)
    for option in ("--validation-examples all", "--test-examples 64", "--tune-lr", "--processes 2"):
        assert option in words
    assert "--executor ray --workers 3" in command(SweepSettings("minilm", executor="ray", workers=3), minilm)


def test_the_command_says_which_seeds_device_threads_and_head_rate(minilm):
    asked = SweepSettings("minilm", seeds=(3, 7), device="cpu", threads=2, head_learning_rate=1e-4, workers=1)
    words = command(asked, minilm)
    for option in ("--seed-numbers 3,7", "--device cpu", "--threads 2", "--head-rate 0.0001", "--workers 1"):
        assert option in words
    assert "--seeds" not in words
    assert "--seeds 2" in command(SweepSettings("minilm", seeds=2), minilm)


def test_the_options_read_back_what_they_say():
    asked = SweepSettings("minilm", seeds=(3, 7), steps=9, batch=4, sequence=16, head_learning_rate=1e-4)
    said = TrainingOptions.values(asked) | {"seed_numbers": "3,7"}
    assert SweepSettings("minilm", **TrainingOptions(**said).settings) == asked
    assert TrainingOptions().settings == {
        name: getattr(SweepSettings("minilm", seeds=1), name) for name in ("steps", "batch", "sequence", "head_learning_rate")
    } | {"seeds": 1}
    with pytest.raises(SettingsError, match="whole numbers separated by commas, such as 3,7, not '3,x'"):
        _ = TrainingOptions(seed_numbers="3,x").settings
