"""Roles and inventories against the models transformers really builds."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from loraxs_core import architecture
from loraxs_core.architecture import OWN, inventory_from_config, meta_model, model_config, module_names, own_class
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import CheckpointError, SettingsError, WeightsMissing
from sample_models.catalogue import CONFIGS
from tests.core.architectures import CASES

BY_CLASS = {case.model_class: case for case in CASES}


def linear_modules(model) -> dict[str, tuple[int, int]]:
    """Every Linear and Conv1D of a model, the truth to compare with: name -> (out, in)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[name] = tuple(module.weight.shape)
        elif isinstance(module, Conv1D):
            found[name] = tuple(module.weight.shape)[::-1]
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_weight_has_its_role(case):
    checkpoint = inventory_from_config(case.config, "tiny")
    assert Counter(weight.role for weight in checkpoint.weights) == case.roles
    assert {weight.name for weight in checkpoint.weights if weight.tied_to} == ({case.tied} if case.tied else set())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_saved_checkpoint_has_the_inventory_of_its_config(case, tmp_path):
    import transformers

    predicted = inventory_from_config(case.config, "tiny")
    settings = transformers.CONFIG_MAPPING[case.model_type].from_dict(case.config)
    getattr(transformers, case.model_class)(settings).save_pretrained(tmp_path)
    opened = Checkpoint.open(tmp_path)

    def comparable(weight):
        return weight.name, weight.role, weight.shape, weight.kind, weight.layer, weight.bias, weight.tied_to, weight.transposed

    assert [comparable(weight) for weight in opened.weights] == [comparable(weight) for weight in predicted.weights]
    assert all(opened.read(weight).shape == weight.shape for weight in opened.linear)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_linear_module_is_missing_and_shapes_are_those_of_the_model(case):
    checkpoint = inventory_from_config(case.config, "tiny")
    task = _task_of(case.model_class)
    model = meta_model(checkpoint, task)
    names = module_names(checkpoint, task)
    shapes = linear_modules(model)
    for weight in checkpoint.weights:
        if weight.is_adaptable:
            assert shapes[names[weight.name]] == weight.shape
    inside = {name for name in shapes if any(part.isdigit() for part in name.split("."))}
    assert inside <= set(names.values())
    assert all(parameter.is_meta for parameter in model.parameters())


def _task_of(model_class: str) -> str | None:
    if model_class.endswith(("ForCausalLM", "LMHeadModel")):
        return "CAUSAL_LM"
    if model_class.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    if model_class in ("T5ForConditionalGeneration", "BartForConditionalGeneration"):
        return "SEQ_2_SEQ_LM"
    return None


def test_module_names_follow_the_head():
    checkpoint = inventory_from_config(BY_CLASS["BertModel"].config, "tiny")
    query = "encoder.layer.1.attention.self.query"
    assert module_names(checkpoint)[query] == query
    assert module_names(checkpoint, "SEQ_CLS")[query] == f"bert.{query}"


def test_module_names_follow_transformers_renaming():
    checkpoint = inventory_from_config(BY_CLASS["ViTForImageClassification"].config, "tiny")
    assert module_names(checkpoint)["vit.encoder.layer.0.attention.attention.query"] == "layers.0.attention.q_proj"
    neox = inventory_from_config(BY_CLASS["GPTNeoXForCausalLM"].config, "tiny")
    assert module_names(neox, "CAUSAL_LM")["embed_out"] == "lm_head"


def test_an_untied_t5_head_is_a_weight_of_its_own():
    config = BY_CLASS["T5ForConditionalGeneration"].config | {"tie_word_embeddings": False}  # as flan-t5's config says
    head = inventory_from_config(config, "tiny").weight("lm_head")
    assert head.tied_to is None
    assert head.parameters == 64 * 32


def test_dtype_comes_from_the_config():
    config = BY_CLASS["LlamaForCausalLM"].config
    assert {weight.dtype for weight in inventory_from_config(config, "tiny").weights} == {"float32"}
    half = inventory_from_config(config | {"torch_dtype": "bfloat16"}, "tiny")
    assert {weight.dtype for weight in half.weights} == {"bfloat16"}


def test_a_config_object_is_as_good_as_a_dict():
    case = BY_CLASS["GPT2LMHeadModel"]
    from_dict = inventory_from_config(case.config, "tiny")
    assert inventory_from_config(model_config(from_dict), "tiny").weights == from_dict.weights


def test_an_architecture_has_no_spectrum():
    checkpoint = inventory_from_config(BY_CLASS["LlamaForCausalLM"].config, "my-llama")
    assert not checkpoint.has_weights
    with pytest.raises(WeightsMissing, match="my-llama is an architecture without weights"):
        checkpoint.read(checkpoint.linear[0])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "names its model_type"),
        ({"model_type": "no-such-model"}, "does not know"),
        ({"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}, "30"),
        ({"model_type": "bert", "hidden_size": "wide"}, "tiny"),
        ({"model_type": "bert", "num_hidden_layers": -1, "vocab_size": -5}, "tiny"),
    ],
)
def test_refused_configs_give_one_sentence(config, says):
    with pytest.raises(CheckpointError, match=says) as caught:
        inventory_from_config(config, "tiny")
    assert "\n" not in str(caught.value)


def test_values_that_a_module_of_pytorch_asserts_against_are_refused_like_others():
    """ModernBERT's padding token is number 50,283: no row of a smaller table."""
    small = {
        "model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    }  # fmt: skip
    with pytest.raises(
        CheckpointError, match="cannot build the architecture of small: Padding_idx must be within num_embeddings"
    ):
        inventory_from_config(small, "small")


def test_remote_code_is_never_run(tmp_path):
    config = BY_CLASS["BertModel"].config | {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.EvilConfig"}}
    assert type(meta_model(inventory_from_config(config, "tiny"))).__module__.startswith("transformers.models.bert")


def test_unknown_task_and_missing_head_are_settings_errors():
    checkpoint = inventory_from_config(BY_CLASS["ViTForImageClassification"].config, "tiny")
    with pytest.raises(SettingsError, match="Unknown task type"):
        meta_model(checkpoint, "DANCING")
    with pytest.raises(SettingsError, match="ModelForCausalLM for vit"):
        meta_model(checkpoint, "CAUSAL_LM")


@pytest.mark.parametrize("name", ["llama-3-8b", "roberta-base", "gpt2"])
def test_the_class_is_known_without_building_the_model(name, monkeypatch):
    checkpoint = Checkpoint(name, json.loads((CONFIGS / f"{name}.json").read_text()), [])
    built = type(meta_model(checkpoint, OWN))
    monkeypatch.setattr(architecture, "_build", None)
    assert own_class(checkpoint) is built
