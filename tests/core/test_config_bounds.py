"""A config.json that claims what no model has is one sentence, at once; every real one passes."""

from __future__ import annotations

import json
import time

import pytest

from loraxs_core import config_bounds
from loraxs_core.architecture import inventory_from_config, meta_model
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.config_bounds import refuse_impossible
from loraxs_core.errors import CheckpointError
from sample_models.catalogue import CONFIGS

LLAMA = json.loads((CONFIGS / "llama-3-8b.json").read_text())
CLAIMS = {
    "num_hidden_layers": 10**9,
    "num_attention_heads": 10**9,
    "num_key_value_heads": 10**400,
    "hidden_size": 10**9,
    "intermediate_size": 1e300,
    "vocab_size": 10**12,
    "num_local_experts": 10**9,
    "text_config": {"num_hidden_layers": 10**9},
    "depths": [2, 10**9],
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_config_of_the_catalogue_passes(path):
    refuse_impossible(json.loads(path.read_text()), path.stem)


@pytest.mark.parametrize("key", CLAIMS)
def test_a_claim_beyond_any_model_is_one_sentence_at_once(key):
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"claims \w+ = .*more than any model has") as caught:
        inventory_from_config(LLAMA | {key: CLAIMS[key]}, "mine")
    assert time.monotonic() - started < 5
    assert len(str(caught.value)) < 250


def test_weights_beside_such_a_config_can_be_scanned_and_no_model_is_built(tiny_llama, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tiny_llama / "model.safetensors")
    config = json.loads((tiny_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    checkpoint = Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match="num_hidden_layers = 1000000000"):
        meta_model(checkpoint, "CAUSAL_LM")


@pytest.mark.parametrize("value", [{"a": 1}, ["llama"], 5, 1.5, True])
def test_a_model_type_that_is_no_text_is_one_sentence(value):
    with pytest.raises(CheckpointError, match="model_type that is no text"):
        inventory_from_config(LLAMA | {"model_type": value}, "mine")
    with pytest.raises(CheckpointError, match="model_type that is no text"):
        inventory_from_config(LLAMA | {"model_type": value, "auto_map": {"AutoConfig": "a.B"}}, "mine")
    with pytest.raises(CheckpointError, match="architectures that are no list"):
        inventory_from_config(LLAMA | {"architectures": 5}, "mine")


def test_a_count_under_a_name_of_its_own_is_stopped_while_the_model_is_built(monkeypatch):
    monkeypatch.setattr(config_bounds, "MOST_MODULES", 50)
    with pytest.raises(CheckpointError, match="asks for more than 50 modules"):
        inventory_from_config(LLAMA, "mine")


def test_lengths_of_texts_may_be_anything():
    refuse_impossible({"max_position_embeddings": 10**30, "sliding_window_size": 2**31, "pad_token_id": -1}, "mine")


def test_deep_nesting_is_one_sentence():
    deep: dict = {}
    for _ in range(500):
        deep = {"a": deep}
    with pytest.raises(CheckpointError, match="nested deeper"):
        refuse_impossible(deep, "mine")
