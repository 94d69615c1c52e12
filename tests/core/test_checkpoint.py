"""Checkpoints on disk: what is read from them, and what is said about broken ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import CheckpointError, ModelNotFound, NonFiniteWeights
from loraxs_core.targets import select_targets, shortest_patterns, target_patterns


@pytest.fixture
def bert(tiny_bert, tmp_path):
    """A copy of the small BERT that a test may damage."""
    return shutil.copytree(tiny_bert, tmp_path / "bert")


def shard(folder, parts: int = 3) -> list[str]:
    """Splits model.safetensors into shards with an index, as transformers does."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        chunk = names[part::parts]
        save_file({name: tensors[name] for name in chunk}, folder / file)
        weight_map |= dict.fromkeys(chunk, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sorted(set(weight_map.values()))


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_matrices_are_those_of_the_loaded_model(fixture, request):
    from transformers import AutoModel
    from transformers.pytorch_utils import Conv1D

    folder = request.getfixturevalue(fixture)
    checkpoint = Checkpoint.open(folder)
    modules = dict(AutoModel.from_pretrained(folder).named_modules())
    for weight in checkpoint.linear:
        if weight.name in ("lm_head",):
            continue
        module = modules.get(weight.name) or modules[weight.key]
        matrix = module.weight.detach().numpy()
        matrix = matrix.T if isinstance(module, Conv1D) else matrix
        assert np.array_equal(checkpoint.read(weight), matrix)
        assert weight.bias == (module.bias is not None)
        assert weight.shape == matrix.shape


def test_a_sharded_checkpoint_is_the_same_checkpoint(bert):
    whole = Checkpoint.open(bert)
    matrices = {weight.name: whole.read(weight) for weight in whole.linear}
    shard(bert)
    sharded = Checkpoint.open(bert)
    assert sharded.weights == whole.weights
    assert all(np.array_equal(sharded.read(weight), matrices[weight.name]) for weight in sharded.linear)


def test_shards_without_an_index_are_found(bert):
    whole = Checkpoint.open(bert)
    shards = shard(bert)
    (bert / "model.safetensors.index.json").unlink()
    assert Checkpoint.open(bert).weights == whole.weights
    (bert / shards[1]).unlink()
    with pytest.raises(CheckpointError, match="holds 2 of the 3 shards"):
        Checkpoint.open(bert)


def test_a_single_file_is_a_checkpoint_too(bert):
    assert Checkpoint.open(bert / "model.safetensors").weights == Checkpoint.open(bert).weights


def test_tied_weights_are_counted_and_scanned_once(tiny_gpt2):
    checkpoint = Checkpoint.open(tiny_gpt2)
    head = checkpoint.weight("lm_head")
    assert head.tied_to == "transformer.wte"
    assert head.parameters == 0
    assert head not in checkpoint.linear
    assert np.array_equal(checkpoint.read(head), checkpoint.read(checkpoint.weight("transformer.wte")))


def test_a_stored_copy_of_a_tied_head_is_tied(tiny_gpt2, tmp_path):
    folder = shutil.copytree(tiny_gpt2, tmp_path / "gpt2")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.weight("lm_head").tied_to == "transformer.wte"
    assert checkpoint.parameters == Checkpoint.open(tiny_gpt2).parameters


def test_weights_are_found_with_and_without_the_base_prefix(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    assert checkpoint.weight("layers.1.mlp.down_proj") is checkpoint.weight("model.layers.1.mlp.down_proj")
    with pytest.raises(CheckpointError, match=r"no weight named 'layers.9"):
        checkpoint.weight("layers.9.mlp.down_proj")


def test_unknown_modules_are_listed(bert):
    tensors = load_file(bert / "model.safetensors") | {
        "strange.thing.weight": torch.ones(3, 5),
        "strange.conv.weight": torch.ones(3, 3, 3),
    }
    save_file(tensors, bert / "model.safetensors")
    weight = Checkpoint.open(bert).weight("strange.thing")
    assert (weight.role, weight.shape, weight.is_adaptable) == ("other", (3, 5), False)


def test_the_fingerprint_follows_the_file(bert):
    before = Checkpoint.open(bert).fingerprint
    assert Checkpoint.open(bert).fingerprint == before
    os.utime(bert / "model.safetensors", ns=(1, 1))
    assert Checkpoint.open(bert).fingerprint != before


def test_paper_targets_and_their_patterns(tiny_bert, tiny_llama, tiny_gpt2):
    bert, llama, gpt2 = (Checkpoint.open(folder) for folder in (tiny_bert, tiny_llama, tiny_gpt2))
    assert target_patterns(bert, select_targets(bert)) == [
        "attention.self.query",
        "attention.self.value",
        "attention.output.dense",
        "output.dense",
    ]
    assert target_patterns(bert, [bert.weight("encoder.layer.1.attention.self.key")]) == ["encoder.layer.1.attention.self.key"]
    assert len(select_targets(llama)) == 14
    assert len(select_targets(gpt2)) == 8
    assert {weight.role for weight in select_targets(llama, "q_proj,mlp.down")} == {"attention.query", "mlp.down"}
    with pytest.raises(CheckpointError, match="matches the target 'qqq'"):
        select_targets(llama, ["qqq"])


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("targets", ["paper", "all-linear", "mlp.down", "attention.output"])
def test_peft_adapts_exactly_the_chosen_modules(fixture, targets, request):
    from peft import LoraConfig, get_peft_model

    from loraxs_core.architecture import meta_model, module_names

    checkpoint = Checkpoint.open(request.getfixturevalue(fixture))
    chosen = select_targets(checkpoint, targets)
    names = module_names(checkpoint)
    adapted = get_peft_model(meta_model(checkpoint), LoraConfig(target_modules=target_patterns(checkpoint, chosen)))
    found = {name.removesuffix(".lora_A") for name, _ in adapted.base_model.model.named_modules() if name.endswith(".lora_A")}
    assert found == {names[weight.name] for weight in chosen}


# What is broken, and what is said about it.


def test_a_missing_folder(tmp_path):
    with pytest.raises(ModelNotFound, match="There is no folder"):
        Checkpoint.open(tmp_path / "none")


def test_a_folder_without_safetensors(tmp_path):
    with pytest.raises(CheckpointError, match="holds no safetensors files"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_a_pickle_only_checkpoint_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(CheckpointError, match=r"only pickled weights .* refused"):
        Checkpoint.open(tmp_path)


def test_a_shard_that_is_named_and_absent(bert):
    shards = shard(bert)
    (bert / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=f"names the shard {shards[1]}"):
        Checkpoint.open(bert)


def test_a_truncated_shard(bert):
    shards = shard(bert)
    path = bert / shards[2]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        Checkpoint.open(bert)


def test_a_corrupted_shard(bert):
    shards = shard(bert)
    path = bert / shards[0]
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])
    with pytest.raises(CheckpointError, match=shards[0]):
        Checkpoint.open(bert)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a.weight": "../other.safetensors"}}',
        '{"weight_map": {"a.weight": "/etc/passwd"}}',
    ],
)
def test_a_broken_index(bert, index):
    shard(bert)
    (bert / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"not a readable shard index|outside its folder"):
        Checkpoint.open(bert)


def test_an_index_that_names_a_tensor_the_shard_lacks(bert):
    shards = shard(bert)
    index = bert / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"] | {"ghost.weight": shards[0]}}))
    with pytest.raises(CheckpointError, match=r"says 'ghost.weight' is in"):
        Checkpoint.open(bert)


def test_the_same_tensor_in_two_files(bert):
    shutil.copy(bert / "model.safetensors", bert / "b.safetensors")
    (bert / "model.safetensors").rename(bert / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"both in a\.safetensors and in b\.safetensors"):
        Checkpoint.open(bert)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(bert, value):
    tensors = load_file(bert / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][3, 5] = value
    save_file(tensors, bert / "model.safetensors")
    checkpoint = Checkpoint.open(bert)
    weight = checkpoint.weight("encoder.layer.1.output.dense")
    with pytest.raises(
        NonFiniteWeights, match=r"encoder\.layer\.1\.output\.dense in model\.safetensors holds 1 NaN or infinite"
    ):
        checkpoint.read(weight)
    assert not np.isfinite(checkpoint.read(weight, check=False)).all()
    assert np.isfinite(checkpoint.read(checkpoint.weight("encoder.layer.0.output.dense"))).all()


@pytest.mark.parametrize("config", ["{", "[1]", '"text"', "\xff"])
def test_a_broken_config(bert, config):
    (bert / "config.json").write_text(config, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json is not"):
        Checkpoint.open(bert)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": ["bert"]},
        {"architectures": "BertForMaskedLM"},
        {"architectures": [1], "text_config": 3},
        {"model_type": None, "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": "yes"},
    ],
)
def test_a_config_of_odd_types_does_not_matter(bert, config):
    (bert / "config.json").write_text(json.dumps(config))
    assert len(Checkpoint.open(bert).linear) == 13


def test_a_checkpoint_without_matrices(tmp_path):
    save_file({"norm.weight": torch.ones(4), "empty.weight": torch.ones(0, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no linear weight matrices"):
        Checkpoint.open(tmp_path)


def test_opening_a_checkpoint_imports_neither_torch_nor_transformers(tiny_bert):
    code = (
        "import sys; from loraxs_core.checkpoint import Checkpoint; from sample_models import open_model;"
        "c = open_model(sys.argv[1]); c.read(c.linear[0]); print(sorted({'torch', 'transformers', 'peft', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_bert)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_of_thousands_of_layers_is_looked_through_once(bert, monkeypatch):
    """Its names, for the shortest targets, and its files, for their digest: not once for each layer or tensor."""

    class Counted(list):
        looked = 0

        def __iter__(self):
            Counted.looked += 1
            return super().__iter__()

    names = [
        f"model.layers.{layer}.{module}" for layer in range(300) for module in ("attn.q_proj", "mlp.c_proj", "attn.c_proj")
    ]
    assert shortest_patterns(names[::3], Counted(names)) == ["attn.q_proj"]
    assert shortest_patterns([*names[::3], *names[1::3]], Counted(names)) == ["attn.q_proj", "mlp.c_proj"]
    assert shortest_patterns(names[3::3], Counted(names)) == names[3::3]  # not the first layer's: by their whole names
    assert Counted.looked == 3
    opened, resolve, resolved = Checkpoint.open(bert), Path.resolve, []
    monkeypatch.setattr(Path, "resolve", lambda self, *given: resolved.append(self) or resolve(self, *given))
    assert opened.fingerprint
    assert len(resolved) == 1 < len(opened.files)
