"""Shared fixtures: the real MiniLM, small random models of several architectures, and folders of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read at import: as the command sets it, whoever imports first

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def minilm():
    """The default sample model, real weights, fetched once into the user's cache and SHA-256 checked."""
    from sample_models import open_model

    return open_model("minilm")


@pytest.fixture(scope="session")
def minilm_folder(minilm) -> Path:
    return minilm.folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets that lie beside the repository on the project's own machines; the test is skipped elsewhere."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data sets are not beside this clone")
    return folder


@pytest.fixture
def own_folders(tmp_path, monkeypatch) -> Path:
    """Cache and data folders of this test alone."""
    monkeypatch.setenv("LORAXS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LORAXS_DATA", str(tmp_path / "data"))
    return tmp_path


def _saved(tmp_path_factory, name: str, model) -> Path:
    folder = tmp_path_factory.mktemp(name)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A folder with a randomly initialised BERT: 2 layers, 32 wide."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    return _saved(tmp_path_factory, "tiny_bert", BertModel(config))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """A folder with a randomly initialised Llama: 2 layers, 32 wide, grouped-query attention."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    return _saved(tmp_path_factory, "tiny_llama", LlamaForCausalLM(config))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory) -> Path:
    """A folder with a randomly initialised GPT-2 (Conv1D layers, tied head): 2 layers, 32 wide."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=40)
    return _saved(tmp_path_factory, "tiny_gpt2", GPT2LMHeadModel(config))


@pytest.fixture(scope="session")
def plan_document(tiny_bert) -> dict:
    """A real plan, with one of what only some have."""
    from analyzers.ranks import Budget, make_plan
    from loraxs_core.checkpoint import Checkpoint

    found = make_plan(Checkpoint.open(tiny_bert), "role", budget=Budget.like_rank(4), targets="all-linear").to_dict()
    name = next(iter(found["ranks"]))
    return found | {"notes": ["a note"], "modules": {name: f"model.{name}"}, "file_bytes": 5}


@pytest.fixture(scope="session")
def scenario_document(tiny_bert, plan_document) -> dict:
    """A scenario with one of everything, as JSON's values."""
    import json

    from analyzers.storage import Scenario

    found = Scenario(
        str(tiny_bert), methods=("full", "lora", "vera", "lora-xs"), ranks={"lora": 4}, plan={**plan_document, "modules": {}}, task="SEQ_CLS",
        options={"vera": {"save_projection": False}, "lora": {"use_rslora": True}}, adapters=1000, replicas=2, versions=3,
        loads_per_month=1e6, egress_price_per_gb=0.09, title="mine", note="a note",
    )  # fmt: skip
    return json.loads(found.to_json())
