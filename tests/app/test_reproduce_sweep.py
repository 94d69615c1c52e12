"""The command that a comparison's settings are told as."""

from __future__ import annotations

import pytest
import typer

from analyzers.compare import SweepSettings
from app.options.data import DataOptions, count_or_all
from app.reproduce.sweeps import command


def test_all_examples_can_be_asked_for():
    assert DataOptions(validation_examples="all").scored["validation_examples"] is None
    assert DataOptions().scored == {"evaluations": 5, "validation_examples": 512, "test_examples": None}
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
