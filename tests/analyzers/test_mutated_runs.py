"""Run folders with something wrong in them: every run is listed or named with its reason, soon; what is read of one is possible."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from analyzers.compare import RunFolder, survey_runs
from analyzers.compare.paired import save_predictions
from analyzers.compare.tasks import METRIC_LIMITS
from loraxs_core.errors import RunError
from tests.analyzers.test_compare_damage import looked_through, runs  # noqa: F401  a fixture
from tests.fuzz import dumped, mutated_bytes, mutated_json, one_sentence, some, survived

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes")


@pytest.fixture
def scored(runs):  # noqa: F811
    """The same with what each trial predicted, which gives its score."""
    for run in (RunFolder(runs / "sound"), RunFolder(runs / "hurt")):
        for trial in run.settings.trials():
            labels = np.random.default_rng(0).normal(size=40)  # the same examples for every method
            noise = np.random.default_rng(len(trial.method)).normal(size=40)
            save_predictions(run.trial_folder(trial.id), "regression", labels + noise, labels)
            path = run.trial_folder(trial.id) / "result.json"
            score = float(np.corrcoef(labels + noise, labels)[0, 1])
            path.write_text(json.dumps({**json.loads(path.read_text()), "score": score}))
    return runs


def in_the_way(path: Path, draw: random.Random) -> None:
    """Something else than a file where one was."""
    path.unlink()
    match draw.randrange(6):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(path.name)  # itself
        case 3:
            path.symlink_to("/dev/zero")
        case 4:
            path.write_bytes(b"")
            os.truncate(path, 2**40)
        case 5:
            pass  # gone


def hurt(run: Path, draw: random.Random) -> None:
    """One or two files of the run damaged."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    likely = [path for path in files if path.name in ("config.json", "status.json")]
    for path in draw.sample(files, draw.choice((1, 1, 2))) if draw.random() < 0.5 else [draw.choice(likely)]:
        kind = draw.random()
        if kind < 0.15:
            in_the_way(path, draw)
        elif kind < 0.4 or path.suffix not in (".json", ".jsonl"):
            path.write_bytes(mutated_bytes(path.read_bytes(), draw))
        elif path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            lines[draw.randrange(len(lines))] = mutated_json(draw.choice(lines), draw)
            path.write_bytes(b"".join(dumped(line, draw) + b"\n" for line in lines))
        else:
            path.write_bytes(dumped(mutated_json(json.loads(path.read_text()), draw), draw))


def said(path: Path) -> dict:
    """What a JSON file says; empty where it is none."""
    try:
        found = json.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def settings_are_what_they_say(run: RunFolder) -> None:
    """Nothing was made of a setting but what stands in the file."""
    document = said(run.config_path)["settings"]
    found = json.loads(json.dumps(run.settings.to_dict()))
    for name, value in document.items():
        if name == "seeds" and isinstance(value, int):
            value = list(range(value))
        if name in ("methods", "seeds", "targets") and isinstance(value, list):
            value = list(dict.fromkeys(value))
        if name == "methods" and isinstance(value, str):
            value = [value]
        if name == "learning_rates":
            value = {
                method: list(dict.fromkeys(given)) if isinstance(given, list) else [given] for method, given in value.items()
            }
        assert found[name] == value, (name, found[name], value)
        assert type(value) is type(found[name]) or isinstance(value, int | float), (name, value)
    assert all(isinstance(value, str) for value in (found["model"], found["task"], found["device"]))
    targets = found["targets"]
    assert isinstance(targets, str) or (targets and all(isinstance(target, str) and target for target in targets)), targets


def records_are_possible(run: RunFolder) -> None:
    """A record that counts is of its trial, and its scores are ones that the metric can have."""
    for trial in run.settings.trials():
        record = run.result(trial)
        if record is None:
            continue
        on_disk = said(run.trial_folder(trial.id) / "result.json")
        assert record == on_disk
        assert {name: record[name] for name in ("trial", "method", "seed", "learning_rate")} == {
            "trial": trial.id, "method": trial.method, "seed": trial.seed, "learning_rate": trial.learning_rate,
        }  # fmt: skip
        low, high = METRIC_LIMITS[record["metric"]]
        assert all(record[name] is None or low <= record[name] <= high for name in ("score", "validation_score"))
        for name in ("seconds", "train_seconds", "svd_seconds", "adapter_bytes", "file_bytes", "peak_memory_bytes"):
            assert record[name] is None or (math.isfinite(record[name]) and record[name] >= 0), (name, record[name])


def chances_are_of_what_was_scored(run: RunFolder, sound: RunFolder) -> None:
    """Scores on examples drawn anew come from the predictions as they were, or are not told."""
    right = sound.draws()
    for label, draws in run.draws().items():
        np.testing.assert_allclose(draws, right[label], atol=1e-3)


def a_damaged_run(which: int, source: str, folder: str) -> str:
    root = Path(folder) / str(which)
    shutil.copytree(source, root)
    hurt(root / "hurt", random.Random(which))
    found = survey_runs(root)
    names = [run.name for run in found.sound]
    assert "sound" in names
    shown = [*names, *(broken.name for broken in found.broken)]
    assert sorted(shown) == (["hurt", "sound"] if os.path.lexists(root / "hurt" / "config.json") else ["sound"])
    for broken in found.broken:
        one_sentence(RunError(broken.reason))
    for run in found.sound:
        looked_through(run)
        settings_are_what_they_say(run)
        records_are_possible(run)
        chances_are_of_what_was_scored(run, RunFolder(root / "sound"))
        status = run.status()
        assert 0 <= status.fraction <= 1
        assert not status.is_running
        assert "\n" not in status.error
        for point in run.metrics().to_dict("records"):
            assert abs(point["value"]) <= sys.float_info.max or math.isnan(point["value"])
    shutil.rmtree(root)
    return "named" if found.broken else "read"


@some()
def test_a_damaged_run_hides_no_other_and_says_nothing_impossible(numbers, scored, tmp_path):
    found = survived(a_damaged_run, numbers, str(scored), str(tmp_path))
    assert found["read"], found
    assert found["named"], found
