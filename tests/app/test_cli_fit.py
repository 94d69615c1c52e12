"""`loraxs fit`: what it prints, and what it refuses."""

import json

import pytest
from typer.testing import CliRunner

from app.cli import app

RUN = CliRunner()


@pytest.fixture(autouse=True)
def _own(own_folders):
    """A cache of this test alone."""


def test_fit_prints_one_document_for_machines(tiny_llama):
    answer = RUN.invoke(
        app, ["fit", str(tiny_llama), "--gpu", "1", "--methods", "lora-xs", "--rank", "4", "--sequence", "64", "--json"]
    )
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    (method,) = found["methods"]
    assert method["method"] == "lora-xs"
    assert method["sequence"] == 64
    assert method["sequence_limited_by_model"]
    assert method["batch"] >= 64
    assert method["peak_reserved_gib_at_batch"] < found["usable_gib"] < 1
