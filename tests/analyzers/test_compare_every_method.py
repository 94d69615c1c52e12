"""Every method on an encoder with a head, on a decoder with a head and on one that writes: it trains, and plain PEFT loads what it saved to the same score."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch

from analyzers.compare import causal
from analyzers.compare.opened import Opened
from analyzers.compare.tasks import open_task, scores
from analyzers.compare.trial import run_trial
from analyzers.compare.trial_settings import TrialSettings
from analyzers.methods import METHODS
from loraxs_core.checkpoint import Checkpoint
from tests.analyzers.compare_helpers import SMALL, sentiment_csv, tiny_decoder, tiny_model

NUMBERS = ["one", "two", "three", "four"]
WITH_ADAPTER = [name for name, method in METHODS.items() if method.config]
SAID = ("Unsupported layer type",)  # PEFT's of every LayerNorm, which it then tunes


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """kind -> (checkpoint, task)."""
    folder = tmp_path_factory.mktemp("every")
    film = open_task(f"csv:{sentiment_csv(folder / 'film.csv')}")
    counted = folder / "next.jsonl"
    rows = [{"prompt": f"after {NUMBERS[n % 4]} comes", "completion": f" {NUMBERS[(n + 1) % 4]}"} for n in range(60)]
    counted.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = Checkpoint.open(tiny_model(folder / "bert"))
    decoder = Checkpoint.open(tiny_decoder(folder / "llama"))
    return {"encoder": (encoder, film), "decoder, head": (decoder, film), "decoder": (decoder, open_task(f"data:{counted}"))}


def trained(name, checkpoint, task, folder, **changes):
    own = {"rank": 4 if METHODS[name].ranked else None, "options": SMALL.get(name, {})}
    common = {"steps": 6, "batch": 8, "sequence": 32, "evaluations": 1, "device": "cpu", "targets": "all-linear"} | changes
    return run_trial(TrialSettings(name, 0, 0.02, 1e-2, **own, **common), Opened(checkpoint, task, task.read()), folder)


def loaded(kind, checkpoint, task, folder):
    """What plain transformers and PEFT make of the saved adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if kind == "decoder":
        base = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    else:
        torch.manual_seed(7)  # a head of other numbers, which the adapter's has to replace
        base = AutoModelForSequenceClassification.from_pretrained(checkpoint.folder, num_labels=task.outputs, pad_token_id=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT's of keys that find no place
        for said in SAID:
            warnings.filterwarnings("ignore", said)
        return PeftModel.from_pretrained(base, folder / "adapter").eval()


def score_of(kind, model, checkpoint, task):
    """The task's metric by a loop of this test's own over the test split."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    test = task.read().test
    with torch.no_grad():
        if kind == "decoder":
            made = causal.written(test, tokenizer, 32, ends=True)
            batch = causal.AnswerCollator(0)([{"input_ids": one.input_ids, "labels": one.labels} for one in made])
            return math.exp(float(model(**batch).loss))
        logits = [model(**tokenizer(one.text, return_tensors="pt")).logits[0].numpy() for one in test]
    return scores(task.kind, np.array(logits), np.array([one.label for one in test]))[task.metric]


@pytest.mark.parametrize("kind", ["encoder", "decoder, head", "decoder"])
@pytest.mark.parametrize("name", WITH_ADAPTER)
def test_a_method_trains_and_plain_peft_loads_it_to_the_same_score(name, kind, places, tmp_path, own_folders):
    checkpoint, task = places[kind]
    record = trained(name, checkpoint, task, tmp_path / "trial")
    assert record["adapter_parameters"] > 0
    assert record["train_seconds"] > 0
    assert (record["svd_seconds"] > 0) == METHODS[name].starts_from_svd
    model = loaded(kind, checkpoint, task, tmp_path / "trial")
    assert score_of(kind, model, checkpoint, task) == pytest.approx(record["score"], abs=1e-5)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_an_adapter_that_puts_tokens_before_a_text_is_scored_on_the_text(kind, places, tmp_path, own_folders):
    checkpoint, task = places["decoder"]
    config = {"peft_type": kind, "num_virtual_tokens": 4} | ({"encoder_hidden_size": 16} if kind == "P_TUNING" else {})
    common = {"steps": 3, "batch": 8, "sequence": 32, "evaluations": 1, "device": "cpu"}
    trial = TrialSettings("mine", 0, 0.02, 1e-2, config=config, **common)
    record = run_trial(trial, Opened(checkpoint, task, task.read()), tmp_path / "trial")
    model = loaded("decoder", checkpoint, task, tmp_path / "trial")
    assert score_of("decoder", model, checkpoint, task) == pytest.approx(record["score"], rel=1e-4)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["full", "head-only"])
def test_the_methods_without_an_adapter_run_as_well(name, kind, places, tmp_path, own_folders):
    checkpoint, task = places[kind]
    record = trained(name, checkpoint, task, tmp_path / "trial")
    assert math.isfinite(record["score"])
    assert (record["trainable"] == 0) == (name == "head-only" and kind == "decoder")
