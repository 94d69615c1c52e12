"""An outsider adds a strategy, a method and a task: one file each, nothing edited, and everything takes them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.analyzers.compare_helpers import tiny_model

ROOT = Path(__file__).parents[1]
TASK = """
from analyzers.compare.tasks.base import CLASSIFICATION, Example, Splits, Task

def read(data, progress):
    examples = tuple(Example(f"the number {number}", number % 2) for number in range(40))
    return Splits(examples[:24], examples[24:32], examples[32:])

TASK = Task("parity", "Parity", "Is a number odd?", CLASSIFICATION, "accuracy", classes=("even", "odd"), read=read)
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """The packages as an outsider has them, with the files that docs/architecture.md prints."""
    folder = tmp_path_factory.mktemp("house")
    for package in ("app", "analyzers", "loraxs_core", "sample_models"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    method, strategy = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL
    )
    for file, text in {
        "analyzers/methods/miss.py": method,
        "analyzers/ranks/strategies/nuclear_ratio.py": strategy,
        "analyzers/compare/tasks/parity.py": TASK,
    }.items():
        assert not (folder / file).exists()
        (folder / file).write_text(text, encoding="utf-8")
    return folder


# Several commands in one process, since most of their time goes into imports; each prints one line of its own.
SEVERAL = """
import json, sys
from typer.testing import CliRunner
from app.cli import app
for arguments in json.load(sys.stdin):
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    print(json.dumps(done.stdout))
"""


def loraxs(house: Path, *commands: list[str]) -> list[str]:
    """What each command prints, run with the house's packages."""
    environment = os.environ | {"PYTHONPATH": str(house)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SEVERAL], input=json.dumps(commands), env=environment, cwd=house, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model") / "bert"))


def test_a_strategy_and_a_method(house, model):
    plan, known, size = loraxs(
        house,
        ["plan", model, "--strategy", "nuclear-ratio", "--like-rank", "8", "--json"],
        ["plan", "--help"],
        ["size", model, "--method", "miss", "--targets", "query,value", "--json"],
    )
    found = json.loads(plan)
    assert found["strategy"] == "nuclear-ratio"
    assert len(set(found["ranks"].values())) > 1
    assert "nuclear-ratio" in known
    found = json.loads(size)
    assert (found["method"], found["trainable"] > 0) == ("miss", True)


@pytest.mark.slow
def test_the_memory_of_a_method_that_nobody_wrote_a_rule_for(house, minilm):
    asked = ["memory", "minilm", "--method", "miss", "--targets", "query", "--sequence", "16", "--json"]
    assert json.loads(loraxs(house, asked)[0])["peak_allocated_gib"] > 0


def test_a_task(house, model, tmp_path):
    settings = ["--methods", "head-only", "--steps", "1", "--batch", "2", "--sequence", "16", "--out", str(tmp_path / "run")]
    found = json.loads(loraxs(house, ["compare", model, "--task", "parity", *settings, "--json"])[0])
    assert found["task"] == "parity"
    assert 0 <= found["summary"][0]["score"] <= 1
