"""Fixtures of the tests of the pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraxs_core.checkpoint import Checkpoint


@pytest.fixture
def fresh_page(own_folders) -> Path:
    """No test sees another's plans, runs or last model; caches of the process are emptied too."""
    import streamlit as st

    st.cache_data.clear()
    st.cache_resource.clear()
    return own_folders


@pytest.fixture
def scanned(fresh_page, tiny_bert) -> Path:
    """The small BERT, its spectra in the cache."""
    from analyzers.spectra import scan

    scan(Checkpoint.open(tiny_bert))
    return tiny_bert


@pytest.fixture
def run(tiny_bert):
    from analyzers.compare import SweepSettings

    return finished_run(SweepSettings(str(tiny_bert), methods=("head-only", "lora"), seeds=2, steps=4))


def finished_run(settings):
    """A run folder as a sweep leaves it, written by its own classes; no training."""
    from analyzers.compare import RunFolder

    run = RunFolder.create(settings)
    with run.working() as writer:
        for number, trial in enumerate(run.settings.trials()):
            folder = run.trial_folder(trial.id)
            folder.mkdir(parents=True)
            writer.metric({"event": "start", "trial": trial.id})
            about = {
                "trial": trial.id,
                "method": trial.method,
                "label": trial.variant,
                "seed": trial.seed,
                "learning_rate": trial.learning_rate,
            }
            for step in (1, 2):
                writer.metric(
                    {**about, "kind": "train", "step": step, "epoch": step / 2, "value": 1 / step, "seconds": float(step)}
                )
            writer.metric({**about, "kind": "eval", "step": 2, "epoch": 1.0, "value": 0.4, "pearson": 0.5})
            record = {
                **about, "plan": trial.plan_label or None, "rank": trial.rank, "metric": "pearson", "score": 0.5 + number / 10, "validation_score": 0.5,
                "adapter_parameters": 0 if trial.method == "head-only" else 100, "head_parameters": 33, "adapter_bytes": 400, "adapter_file_bytes": 500,
                "head_bytes": 132, "file_bytes": 600, "seconds": 1.0, "train_seconds": 0.5, "svd_seconds": 0.1, "svd_share": 0.1,
                "peak_memory_bytes": 10**8, "test_examples": 30, "test_seconds": 0.1, "state": "done", "error": None,
            }  # fmt: skip
            (folder / "result.json").write_text(json.dumps(record))
        writer.last_word(state="done", fraction=1.0, trials_done=number + 1, trials_total=number + 1)
    return run


@pytest.fixture(scope="module")
def hostile_model(tmp_path_factory) -> Path:
    """A small BERT with hostile names."""
    from tests.app.hostile import model_in

    return model_in(tmp_path_factory.mktemp("models"))


@pytest.fixture
def hostile_run(tiny_bert, fresh_page):
    """A run with hostile names."""
    from tests.app.hostile import run_of

    return run_of(tiny_bert)
