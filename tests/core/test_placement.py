"""Names, splits and ties on disk against what transformers itself holds after loading the files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from analyzers.ranks import Budget, make_plan
from analyzers.storage import adapter_size
from loraxs_core.architecture import as_loaded, inventory_from_config, left_out, module_names, weight_of_module
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError, CheckpointError
from loraxs_core.targets import select_targets
from loraxs_core.tuner import LoraXSConfig
from loraxs_core.tuner.folder import verify_adapter

TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 64, "vocab_size": 64, "pad_token_id": 0, "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 28, "patch_size": 14,
}  # fmt: skip
NOMIC = {name: value for name, value in TEXT.items() if name not in ("num_key_value_heads", "head_dim")}
# Model class, model type, settings, modules that the file does not hold as they are in memory.
KINDS = {
    "split": ("NomicBertModel", "nomic_bert", NOMIC, ("q_proj", "k_proj", "v_proj")),
    "split at the end": ("GteModel", "gte", NOMIC, ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj")),
    "renamed": ("ViTForImageClassification", "vit", VISION, ()),
    "parts with names of their own": (
        "Gemma3ForConditionalGeneration", "gemma3",
        {"text_config": TEXT, "vision_config": VISION | {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4}, (),
    ),
}  # fmt: skip


def saved(folder, model_class: str, model_type: str, settings: dict):
    """A random model saved to `folder`, as transformers loads it again."""
    import transformers

    torch.manual_seed(0)
    built = getattr(transformers, model_class)
    built(transformers.CONFIG_MAPPING[model_type](**settings)).save_pretrained(folder)
    return built.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_as_loaded_are_those_that_transformers_holds(kind, tmp_path):
    model_class, model_type, settings, converted = KINDS[kind]
    model = saved(tmp_path, model_class, model_type, settings)
    checkpoint = as_loaded(Checkpoint.open(tmp_path))
    paths = module_names(checkpoint, "own")
    adaptable = [weight for weight in checkpoint.weights if weight.is_adaptable]
    assert {weight.name.rpartition(".")[2] for weight in adaptable} >= set(converted)
    for weight in adaptable:
        assert np.array_equal(checkpoint.read(weight), model.get_submodule(paths[weight.name]).weight.detach().numpy())
    linear = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert {name for name in linear if any(part.isdigit() for part in name.split("."))} <= set(paths.values())
    bare = as_loaded(inventory_from_config(json.loads((tmp_path / "config.json").read_text()), "bare"))
    assert [(one.name, one.shape, one.tied_to) for one in bare.weights] == [
        (one.name, one.shape, one.tied_to) for one in checkpoint.weights
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_plan_size_and_verify_follow_the_model_in_memory(kind, tmp_path):
    model_class, model_type, settings, _ = KINDS[kind]
    model = saved(tmp_path / "base", model_class, model_type, settings)
    checkpoint = Checkpoint.open(tmp_path / "base")
    plan = make_plan(checkpoint, "role", budget=Budget.like_rank(3), targets="all-linear")
    adapted = get_peft_model(model, plan.lora_xs_config())
    adapted.save_pretrained(tmp_path / "adapter")
    held = {name.removeprefix("base_model.model."): one for name, one in adapted.named_modules() if hasattr(one, "loraxs_R")}
    paths = module_names(checkpoint, "own")
    assert {paths[name]: rank for name, rank in plan.ranks.items()} == {name: one.r["default"] for name, one in held.items()}
    size = adapter_size(checkpoint, "lora-xs", plan=plan)
    assert size.file_bytes == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    checks = verify_adapter(tmp_path / "adapter", checkpoint)
    assert {check.name for check in checks if check.status == "same"} == set(held)


def test_an_adapter_of_another_class_of_the_same_model_finds_its_weights(tmp_path):
    """Trained on the bare model, on a classifier: the base model's prefix comes and goes."""
    model_class, model_type, settings, _ = KINDS["renamed"]
    saved(tmp_path, model_class, model_type, settings)
    checkpoint = Checkpoint.open(tmp_path)
    stored = "vit.encoder.layer.0.attention.attention.query"
    for path in ("vit.layers.0.attention.q_proj", "layers.0.attention.q_proj", stored):
        assert weight_of_module(checkpoint, path)[1].name == stored
    with pytest.raises(CheckpointError, match="no weight named"):
        weight_of_module(checkpoint, "layers.7.attention.q_proj")


def llama(folder, **settings):
    return saved(folder, "LlamaForCausalLM", "llama", TEXT | settings)


def edit(folder, change) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_a_layer_behind_the_last_one_is_left_out_with_a_note(tmp_path):
    llama(tmp_path)
    edit(
        tmp_path,
        lambda z: z | {key.replace("layers.1.", "layers.2."): one.clone() for key, one in z.items() if "layers.1." in key},
    )
    checkpoint = Checkpoint.open(tmp_path)
    plan = make_plan(checkpoint, "role", budget=Budget.like_rank(2))
    assert len(plan.ranks) == 14
    assert plan.notes[0] == "In no module of LlamaForCausalLM, so left out: model.layers.2.self_attn.q_proj and 6 more."
    assert left_out(checkpoint) == plan.notes[0]
    assert len(adapter_size(checkpoint, "lora-xs", rank=2).ranks) == 14


def test_names_of_which_transformers_understands_none_are_planned_as_they_are(tmp_path):
    llama(tmp_path)
    edit(tmp_path, lambda z: {f"strange.{key.replace('layers', 'rows')}": one for key, one in z.items()})
    checkpoint = Checkpoint.open(tmp_path)
    assert as_loaded(checkpoint) is checkpoint
    assert len(select_targets(checkpoint)) == 14


@pytest.mark.parametrize("equal", [True, False])
def test_two_stored_heads_are_tied_only_when_their_numbers_are_equal(tmp_path, equal):
    llama(tmp_path, tie_word_embeddings=True)

    def two_heads(z):
        head = z["model.embed_tokens.weight"].clone()
        if not equal:
            head[-1, -1] += 1
        return z | {"lm_head.weight": head}

    edit(tmp_path, two_heads)
    model = type(llama(tmp_path / "other")).from_pretrained(tmp_path)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == equal
    for checkpoint in (Checkpoint.open(tmp_path), as_loaded(Checkpoint.open(tmp_path))):
        assert (checkpoint.weight("lm_head").tied_to == "model.embed_tokens") == equal
    targets = ["embed_tokens", "lm_head"]
    if equal:
        with pytest.raises(CheckpointError, match="are one matrix"):
            select_targets(Checkpoint.open(tmp_path), targets)
    else:
        assert len(select_targets(Checkpoint.open(tmp_path), targets)) == 2


def test_only_the_head_is_stored_and_the_config_ties(tmp_path):
    """transformers then ties the embedding to the head."""
    llama(tmp_path, tie_word_embeddings=True)
    edit(tmp_path, lambda z: {("lm_head.weight" if "embed_tokens" in key else key): one for key, one in z.items()})
    checkpoint = as_loaded(Checkpoint.open(tmp_path))
    assert checkpoint.weight("lm_head").tied_to is None
    assert checkpoint.weight("model.embed_tokens").tied_to == "lm_head"


@pytest.mark.parametrize("method", ["lora-xs", "lora"])
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_head_or_an_embedding_as_target_is_sized_and_verified(tmp_path, target, method):
    """PEFT writes the base's own matrix along, which is no module saved whole."""
    from analyzers.methods import AdapterSpec, peft_config

    model = llama(tmp_path / "base")
    checkpoint = Checkpoint.open(tmp_path / "base")
    size = adapter_size(checkpoint, method, rank=2, targets=["q_proj", target])
    get_peft_model(model, peft_config(AdapterSpec(method, ["q_proj", target], rank=2))).save_pretrained(tmp_path / "adapter")
    assert size.file_bytes == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size.copied == 64 * 32
    if method == "lora-xs":
        assert {check.status for check in verify_adapter(tmp_path / "adapter", checkpoint)} == {"same"}
        edit_adapter = tmp_path / "adapter" / "adapter_model.safetensors"
        tensors = load_file(edit_adapter)
        copied = next(key for key in tensors if key.endswith("base_layer.weight"))
        save_file(tensors | {copied: tensors[copied] + 1}, edit_adapter, metadata={"format": "pt"})
        wrong = [check.name for check in verify_adapter(tmp_path / "adapter", checkpoint) if not check.ok]
        assert [name.endswith(target) for name in wrong] == [True]


def test_two_tied_matrices_are_refused_before_training(tmp_path):
    model = llama(tmp_path, tie_word_embeddings=True)
    with pytest.raises(AdapterError, match=r"model\.embed_tokens and lm_head share one weight"):
        get_peft_model(model, LoraXSConfig(r=2, target_modules=["embed_tokens", "lm_head"]))
    get_peft_model(llama(tmp_path / "untied"), LoraXSConfig(r=2, target_modules=["embed_tokens", "lm_head"]))


def test_special_floats_of_a_config_are_numbers(tmp_path):
    """As transformers writes infinities: nested and in lists, of both signs, NaN too."""
    llama(tmp_path)
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text())
    settings["extra"] = {
        "limit": [0.0, {"__float__": "Infinity"}],
        "low": {"__float__": "-Infinity"},
        "none": {"__float__": "NaN"},
    }
    file.write_text(json.dumps(settings))
    extra = Checkpoint.open(tmp_path).config["extra"]
    assert (extra["limit"], extra["low"]) == ([0.0, float("inf")], float("-inf"))
    assert np.isnan(extra["none"])
    assert np.isnan(inventory_from_config(settings, "bare").config["extra"]["none"])
