"""Fine-tunes as people run them: presets of training loops, fused losses, PEFT's own configurations, GPUs that are full, older software."""

import json
import weakref
from dataclasses import fields

import pytest
import torch

from analyzers.memory import GPUS, MemorySettings, estimate_memory
from analyzers.memory.allocator import CachingAllocator, OutOfMemory, least_capacity, replay
from analyzers.memory.built_model import build
from analyzers.memory.offloading import offload
from analyzers.memory.optimizers import make_optimizer
from analyzers.memory.trainers import TRAINERS
from analyzers.methods.peft_configs import of_single_layers, read_config
from analyzers.optimizers import OPTIM_NAMES, OPTIMIZERS
from analyzers.units import MIB
from loraxs_core.architecture import inventory_from_config
from loraxs_core.errors import SettingsError
from tests.analyzers.test_memory_estimate import LLAMA, PLAIN

WIDE = {**LLAMA, "vocab_size": 60_000}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4}


@pytest.fixture(autouse=True)
def _own(own_folders):
    """A cache of this test alone."""


def estimate(config, **settings):
    checkpoint = inventory_from_config(config, "a small model")
    return estimate_memory(checkpoint, MemorySettings(**{**PLAIN, "sequence": 64, **settings}), use_cache=False)


# Training loops


def test_trainers_defaults_are_those_of_the_installed_transformers():
    from transformers import TrainingArguments

    known = {field.name: field.default for field in fields(TrainingArguments)}
    ours = MemorySettings.preset("trainer")
    assert OPTIM_NAMES[getattr(known["optim"], "value", known["optim"])] == ours.optimizer
    assert known["per_device_train_batch_size"] == ours.batch
    assert bool(known["bf16"]) == ours.mixed_precision
    assert bool(known["gradient_checkpointing"]) == ours.gradient_checkpointing
    assert (known["torch_empty_cache_steps"] is not None) == ours.empty_cache
    assert known["gradient_accumulation_steps"] == ours.gradient_accumulation


def test_sfttrainers_defaults_are_those_of_trl():
    trl = pytest.importorskip("trl")
    known = {field.name: field.default for field in fields(trl.SFTConfig)}
    ours = MemorySettings.preset("sft")
    assert known["max_length"] == ours.sequence
    assert bool(known["gradient_checkpointing"]) == ours.gradient_checkpointing
    assert known["bf16"] in (None, True)
    assert ours.mixed_precision


def test_a_preset_is_filled_in_and_each_value_can_be_overridden():
    assert MemorySettings.preset("trainer") == MemorySettings()
    usual = MemorySettings.preset("sft")
    assert (usual.loss, usual.sequence, usual.gradient_checkpointing) == ("trl", 1024, True)
    for name, value in TRAINERS["sft"].settings.items():
        other = {"base_dtype": "bf16", "sequence": 7, "loss": "transformers"}.get(name, not value)
        assert getattr(MemorySettings.preset("sft", **{name: other}), name) == other
    assert MemorySettings.preset("sft", quantize="4bit").adapter_dtype == "bf16"
    with pytest.raises(SettingsError, match="Unknown trainer 'axolotl'; there are trainer, sft, dpo, peft-bench"):
        MemorySettings.preset("axolotl")


def test_weights_are_in_the_checkpoints_own_precision():
    assert estimate({**LLAMA, "dtype": "bfloat16"}, base_dtype=None) == estimate(LLAMA, base_dtype="bf16")
    assert estimate(LLAMA, base_dtype=None) == estimate(LLAMA, base_dtype="fp32")


# The loss


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("loss", ["trl", "liger", "cut-cross-entropy"])
def test_a_fused_loss_never_holds_all_logits(method, loss):
    settings = {"method": method, "batch": 8, "sequence": 256, "padding": False, "optimizer": "sgd"}
    usual, fused = estimate(WIDE, **settings), estimate(WIDE, loss=loss, **settings)
    logits = 8 * 256 * WIDE["vocab_size"]
    assert fused.how == "extrapolated"
    assert usual.peak_allocated - fused.peak_allocated > 8 * logits
    whole = estimate(WIDE, loss=loss, full_trace=True, **settings)
    assert fused.peak_reserved == whole.peak_reserved


def test_a_trained_output_matrix_has_its_gradient_under_a_fused_loss():
    """At the peak, the optimizer's step, gradients of all weights are there."""
    for loss in ("trl", "liger", "cut-cross-entropy"):
        found = estimate(LLAMA, method="full", loss=loss, optimizer="adamw", sequence=16)
        parameters = inventory_from_config(LLAMA, "a small model").parameters
        assert found.breakdown["gradients"] == pytest.approx(2 * parameters, rel=0.03)


def test_older_losses_hold_more_logits():
    settings = {"method": "lora", "sequence": 512, "gradient_checkpointing": True, "keep_logits": True}
    newest, shifted, floats = (
        estimate(WIDE, transformers_version=version, **settings).peak_allocated for version in (None, "4.48", "4.44")
    )
    assert newest == pytest.approx(shifted, rel=0.02)
    assert shifted < floats
    with pytest.raises(SettingsError, match="'new' is no version of transformers"):
        MemorySettings(transformers_version="new")


# Attention and batches


def test_flash_attention_builds_no_mask_and_packing_pads_nothing():
    settings = {"method": "lora", "batch": 4, "sequence": 512}
    masked = estimate(LLAMA, padding=True, **settings)
    flash = estimate(LLAMA, padding=True, attention="flash_attention_2", **settings)
    packed = estimate(LLAMA, padding_free=True, attention="flash_attention_2", **settings)
    assert flash.how == packed.how == "extrapolated"
    assert max(packed.peak_allocated, flash.peak_allocated) < masked.peak_allocated
    assert packed.peak_allocated == pytest.approx(
        estimate(LLAMA, padding=False, attention="flash_attention_2", **settings).peak_allocated, rel=0.01
    )


def test_computed_positions_go_beyond_the_table_with_a_remark_and_others_do_not():
    long = estimate({**LLAMA, "rope_theta": 10000.0}, sequence=1024)
    assert any("made for 512 tokens" in reason for reason in long.reasons)
    bert = {**LLAMA, "model_type": "bert", "architectures": ["BertModel"]}
    with pytest.raises(SettingsError, match="has positions for 512 tokens"):
        estimate(bert, sequence=1024)


def test_offloaded_activations_and_states_leave_the_gpu():
    settings = {"method": "full", "sequence": 256, "batch": 4, "padding": False, "optimizer": "adamw-fused"}
    usual = estimate(LLAMA, **settings)
    away = estimate(LLAMA, offload_activations=True, offload_optimizer=True, **settings)
    assert away.breakdown["optimizer"] == 0 < usual.breakdown["optimizer"]
    assert away.peak_allocated < 0.7 * usual.peak_allocated


@pytest.mark.parametrize(("method", "checkpointing", "how"), [("lora", False, "extrapolated"), ("full", True, "traced")])
def test_offloading_is_told_from_few_layers_only_where_they_repeat(method, checkpointing, how):
    settings = {
        "method": method,
        "gradient_checkpointing": checkpointing,
        "offload_activations": True,
        "sequence": 256,
        "batch": 4,
    }
    found, whole = (estimate(LLAMA, full_trace=full, **settings) for full in (False, True))
    assert found.how == how
    assert found.peak_reserved == whole.peak_reserved


def test_the_last_five_tensors_saved_are_still_on_their_way_and_what_is_saved_again_stays():
    model = torch.nn.Linear(1, 1, device="meta")
    leave, return_ = offload(model)
    saved = [torch.empty(1024, device="meta") for _ in range(8)]
    alive = [weakref.ref(one) for one in saved]
    kept = [leave(one) for one in saved]
    again = leave(saved[-1])
    assert again is saved[-1]
    assert leave(torch.empty(8, device="meta")).shape == (8,)  # too small to go
    del saved, again
    assert [one() is not None for one in alive] == [False] * 3 + [True] * 5
    assert [return_(one).shape for one in kept] == [(1024,)] * 8


# Optimizers


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("paged_adamw_8bit", 0.03125), ("lion_8bit", 1.02), ("lion_32bit", 4), ("adamw_bnb_8bit", 2.04), ("adamw_torch_fused", 8),
        ("adagrad", 4), ("rmsprop", 4), ("ademamix", 12),
    ],
)  # fmt: skip
def test_states_of_the_optimizers_that_training_arguments_know(name, each):
    """Bytes a trained number, of a matrix large enough to be quantised and paged."""
    name = MemorySettings(optimizer=name).optimizer
    assert name in OPTIMIZERS
    parameter = torch.nn.Parameter(torch.empty(1024, 1024, device="meta"))
    parameter.grad = torch.empty_like(parameter)
    optimizer = make_optimizer(name, [parameter])
    optimizer.step()
    held = sum(
        value.untyped_storage().nbytes() for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)
    )
    assert held / parameter.numel() == pytest.approx(each, rel=0.02, abs=1e-4)


# PEFT's own configurations


def test_a_configuration_of_peft_gives_what_the_method_gives(tmp_path):
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa")
    config.save_pretrained(tmp_path)
    by_method = estimate(LLAMA, method="lora", rank=4, targets=["q_proj", "v_proj"])
    for given in (config, read_config(tmp_path), json.loads((tmp_path / "adapter_config.json").read_text())):
        found = estimate(LLAMA, peft_config=given)
        assert (found.peak_allocated, found.peak_reserved) == (by_method.peak_allocated, by_method.peak_reserved)


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "LOHA", "r": 4, "target_modules": ["q_proj"]},
        {"peft_type": "RANDLORA", "r": 4, "target_modules": ["q_proj"]},
        {"peft_type": "FOURIERFT", "n_frequency": 10, "target_modules": ["q_proj"]},
        {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm"]},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8},
        {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 8},
    ],
)
def test_methods_that_the_workbench_does_not_know_are_traced(config):
    found = estimate(LLAMA, peft_config=config)
    assert found.how in ("traced", "extrapolated")
    assert found.breakdown["adapters"] > 0 or config["peft_type"] == "LN_TUNING"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"r": 4}, "has a peft_type; this has none"),
        ({"peft_type": "ABACUS"}, "PEFT knows no adapter of type 'ABACUS'; there are ADALORA, "),
        ({"peft_type": "SHIRA", "r": 4, "target_modules": ["q_proj"]}, "with shira cannot be traced without its numbers"),
    ],
)
def test_a_configuration_that_cannot_be_built_says_so(config, says):
    with pytest.raises(SettingsError, match=says):
        estimate(LLAMA, peft_config=config)


def test_configurations_of_single_layers_are_told():
    assert of_single_layers({"target_modules": ["model.layers.3.q_proj"]})
    assert of_single_layers({"layers_to_transform": [1, 2]})
    assert not of_single_layers({"target_modules": ["fc1", "w2"], "rank_pattern": {"q_proj": 8}})


def test_modules_trained_whole_stay_in_the_bases_precision():
    checkpoint = inventory_from_config(LLAMA, "a small model")
    settings = MemorySettings(
        **PLAIN, peft_config={"peft_type": "LORA", "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    )
    model = build(checkpoint, settings, settings.adapter(checkpoint)).model
    trained = {name: parameter.dtype for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {dtype for name, dtype in trained.items() if "modules_to_save" in name} == {torch.bfloat16}
    assert {dtype for name, dtype in trained.items() if "lora_" in name} == {torch.float32}


# Experts, several GPUs


def test_experts_stay_in_16_bit_since_transformers_5_and_were_quantised_before():
    stacked, separate = (estimate(MIXTRAL, quantize="4bit", transformers_version=one) for one in (None, "4.48"))
    assert any("leaves in bf16 (base_dtype)" in reason for reason in stacked.reasons)
    assert not any("leaves in bf16 (base_dtype)" in reason for reason in separate.reasons)
    experts = 9 * 4 * 3 * LLAMA["hidden_size"] * LLAMA["intermediate_size"]
    saved = stacked.breakdown["weights"] - separate.breakdown["weights"]
    assert saved == pytest.approx(1.5 * experts, rel=0.03)


def test_zero_keeps_twelve_bytes_of_state_for_a_weight_in_16_bit():
    parameters = inventory_from_config(LLAMA, "a small model").parameters
    found = estimate(LLAMA, method="full", optimizer="adamw-fused", gpus=2, sharding="zero2")
    assert found.breakdown["optimizer"] == pytest.approx(12 * parameters / 2, rel=0.04)


def test_fsdp_gathers_a_layer_while_it_runs_and_nothing_while_the_optimizer_does():
    """Of a full fine-tune in 16 bit the peak is the optimizer's step: weights, gradients, two states and a temporary of one GPU's share
    (a public measurement of Mistral-7B on two A100 has exactly these five)."""
    parameters = inventory_from_config(LLAMA, "a small model").parameters
    found = estimate(LLAMA, method="full", gpus=2, sharding="fsdp", sequence=8)
    assert found.peak_allocated == pytest.approx(5 * 2 * parameters / 2, rel=0.05, abs=10 * MIB)


def test_fsdp_has_no_casts_of_its_own_under_mixed_precision():
    settings = {"method": "full", "base_dtype": "fp32", "mixed_precision": True, "optimizer": "adamw-fused", "sequence": 8}
    alone, spread = (estimate(WIDE, **settings, **more) for more in ({}, {"gpus": 64, "sharding": "fsdp"}))
    parameters = inventory_from_config(WIDE, "a small model").parameters
    assert alone.peak_allocated > 16 * parameters
    # What is gathered is in 16 bit: everything outside of layers, a layer, and its gradient.
    assert spread.peak_allocated < 3.5 * parameters


def test_reentrant_checkpointing_of_frozen_layers_under_fsdp_holds_every_layers_input_and_its_gradient():
    settings = {"method": "lora", "gradient_checkpointing": True, "batch": 16, "sequence": 256, "padding": False, "gpus": 2,
                "sharding": "fsdp"}  # fmt: skip
    plain, held = (estimate(LLAMA, reentrant_checkpointing=one, **settings) for one in (False, True))
    inputs = 16 * 256 * LLAMA["hidden_size"] * 2
    assert held.peak_allocated - plain.peak_allocated > 4 * inputs
    assert estimate(LLAMA, transformers_version="4.48", **settings).peak_allocated == pytest.approx(
        held.peak_allocated, rel=0.1
    )


# A GPU that is full


def test_a_full_gpu_gives_back_what_it_holds_in_vain_before_it_fails():
    """Two freed segments of 30 MiB do not hold 50 MiB; where there is no more room they are given back."""
    sizes = [30 * MIB, 30 * MIB, 50 * MIB]
    events = [0, 1, ~0, ~1, 2]
    played = replay(sizes, events)
    assert played.peak_reserved == 110 * MIB
    assert replay(sizes, events, capacity=64 * MIB).peak_reserved == 60 * MIB
    assert least_capacity(sizes, events, played) <= 61 * MIB
    with pytest.raises(OutOfMemory):
        replay(sizes, events, capacity=58 * MIB)


def test_expandable_segments_grow_where_others_would_be_held_in_vain():
    sizes = [30 * MIB, 30 * MIB, 50 * MIB]
    played = replay(sizes, [0, 1, ~0, ~1, 2], expandable=True)
    assert played.peak_reserved == 60 * MIB
    allocator = CachingAllocator(capacity=100 * MIB, expandable=True)
    first, second = allocator.malloc(40 * MIB), allocator.malloc(40 * MIB)
    allocator.release(first)
    assert allocator.malloc(50 * MIB).size >= 50 * MIB  # 40 MiB of the hole are given back for it
    assert allocator.reserved <= 100 * MIB
    allocator.release(second)


def test_what_fits_is_told_by_what_a_full_gpu_gives_back():
    found = estimate(WIDE, method="full", batch=16, sequence=512)
    verdicts = [found.fits(gpu) for gpu in sorted(GPUS, key=lambda gpu: gpu.memory)]
    assert verdicts == sorted(verdicts, key=("no", "perhaps", "yes").index)
    assert found.peak_allocated <= found.least <= found.peak_reserved
