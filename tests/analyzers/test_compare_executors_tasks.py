"""What other processes do besides training a head: the harness after two processes' training, rates tuned on a Ray cluster. All slow."""

from __future__ import annotations

import json

import pytest

from analyzers.compare import SweepSettings, open_task, run_sweep
from tests.analyzers.compare_helpers import sentiment_csv, tiny_decoder, tiny_model

pytestmark = pytest.mark.slow
COMMON = {"batch": 4, "evaluations": 1, "device": "cpu", "threads": 1}


@pytest.mark.skipif(open_task("boolq").missing() is not None, reason="BoolQ is not on this machine")
def test_the_harness_scores_what_two_processes_trained_together(tmp_path):
    pytest.importorskip("lm_eval")
    model = str(tiny_decoder(tmp_path / "llama"))
    asked = {"methods": ("lora-xs",), "rank": 4, "targets": "all-linear", "steps": 6, "sequence": 64, "test_examples": 12}
    common = {**COMMON, **asked, "validation_examples": 8, "learning_rates": {"lora-xs": 0.05}}
    one = run_sweep(SweepSettings(model, "boolq", **common), tmp_path / "one")
    two = run_sweep(SweepSettings(model, "boolq", processes=2, **common), tmp_path / "two")
    assert two.status().state == "done", two.log()
    found, alone = two.results().iloc[0], one.results().iloc[0]
    assert found["test_examples"] == alone["test_examples"] == 12
    assert found["score"] == alone["score"]
    assert found["validation_score"] == pytest.approx(alone["validation_score"], abs=1e-4)
    losses = [run.metrics().query("kind == 'train'")["value"].to_numpy() for run in (two, one)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_rates_are_tuned_on_a_cluster_as_they_are_here(tmp_path):
    ray = pytest.importorskip("ray")
    model, task = str(tiny_model(tmp_path / "model")), f"csv:{sentiment_csv(tmp_path / 'film.csv')}"
    common = {
        **COMMON,
        "batch": 8,
        "sequence": 16,
        "methods": ("lora-xs", "lora"),
        "rank": 4,
        "steps": 96,
        "seeds": 2,
        "tune_lr": True,
    }
    here = run_sweep(SweepSettings(model, task, **common), tmp_path / "here")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        there = run_sweep(SweepSettings(model, task, executor="ray", **common), tmp_path / "there")
    finally:
        ray.shutdown()
    assert there.status().state == "done", there.log()
    same = ["trial", "learning_rate", "score", "validation_score", "test_loss"]
    assert there.results()[same].equals(here.results()[same])
    for file in here.path.glob("tuning/*/tuning.json"):
        mine, theirs = (json.loads((run.path / file.relative_to(here.path)).read_text()) for run in (here, there))
        assert theirs["rates"] == mine["rates"]
        assert theirs["scores"] == mine["scores"]
    assert len(list(there.path.glob("tuning/*/tuning.json"))) == 2
