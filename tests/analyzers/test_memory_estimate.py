"""Estimates as a whole: a repeated layer against a full trace, what the parts add up to, what settings change, what is kept."""

import re

import pytest

from analyzers.memory import MemorySettings, estimate_memory, what_decides
from analyzers.memory.closed_form import closed_form
from analyzers.memory.labels import PARTS
from analyzers.methods import METHODS
from analyzers.storage import adapter_size
from analyzers.units import GIB
from loraxs_core.architecture import inventory_from_config
from sample_models import open_model

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 9,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}


@pytest.fixture(autouse=True)
def _own(own_folders):
    """A cache of this test alone."""


@pytest.fixture(scope="module")
def llama():
    return inventory_from_config(LLAMA, "nine layers")


# A plain loop over one sequence in 16 bit.
PLAIN = {"batch": 1, "base_dtype": "bf16", "optimizer": "adamw"}


def estimate(checkpoint, **settings):
    return estimate_memory(checkpoint, MemorySettings(**{**PLAIN, "sequence": 128, **settings}), use_cache=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "full", "optimizer": "adamw-fused", "gradient_accumulation": 2},
        {"method": "head-only"},
        {"method": "lora", "batch": 2, "gradient_checkpointing": True},
        {"method": "lora-xs", "batch": 2, "quantize": "4bit", "optimizer": "adamw-8bit"},
        {"method": "vera", "optimizer": "adafactor", "quantize": "8bit"},
        {"method": "dora", "base_dtype": "fp32", "mixed_precision": True, "optimizer": "sgd"},
        pytest.param({"method": "psoft", "rank": 8, "attention": "eager"}, marks=pytest.mark.slow),
        pytest.param({"method": "tinylora", "rank": 4}, marks=pytest.mark.slow),
    ],
)
def test_a_repeated_layer_gives_what_a_full_trace_gives(llama, settings):
    few, all_layers = estimate(llama, **settings), estimate(llama, full_trace=True, **settings)
    assert (few.how, all_layers.how) == ("extrapolated", "traced")
    assert few.peak_allocated == pytest.approx(all_layers.peak_allocated, rel=1e-3, abs=2**16)
    assert few.peak_reserved == all_layers.peak_reserved
    for part in PARTS:
        assert few.breakdown[part] == pytest.approx(all_layers.breakdown[part], rel=0.01, abs=2**16)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw-8bit", "adamw-fused", "adamw-loop"])
@pytest.mark.parametrize("method", ["full", "lora-xs"])
def test_every_layer_has_its_own_optimizer_states_and_one_temporary_at_a_time(method, optimizer):
    """On matrices so large that the temporaries of one parameter weigh on the peak, as they do in models of billions."""
    wide = {**LLAMA, "hidden_size": 1024, "intermediate_size": 4096, "max_position_embeddings": 64}
    checkpoint = inventory_from_config(wide, "nine wide layers")
    few, all_layers = (
        estimate(checkpoint, method=method, optimizer=optimizer, sequence=16, full_trace=full) for full in (False, True)
    )
    assert (few.how, all_layers.how) == ("extrapolated", "traced")
    assert few.peak_allocated == pytest.approx(all_layers.peak_allocated, rel=3e-4)
    for part in PARTS:
        assert few.breakdown[part] == pytest.approx(all_layers.breakdown[part], rel=1e-3, abs=2**14)


@pytest.mark.parametrize("options", [{}, {"weight_tying": 0.5}, {"weight_tying": 1.0}])
def test_tinyloras_vectors_are_as_many_as_the_whole_model_has(options):
    """Every layer has its own, or shares some: all of them lie in one table, which the first layer holds too."""
    checkpoint = inventory_from_config({**LLAMA, "num_hidden_layers": 20}, "twenty layers")
    few, all_layers = (
        estimate(checkpoint, method="tinylora", rank=4, sequence=16, options=options, full_trace=full) for full in (False, True)
    )
    assert few.breakdown == all_layers.breakdown
    assert few.peak_reserved == all_layers.peak_reserved


@pytest.mark.parametrize(
    "settings", [{"base_dtype": "fp16"}, {"base_dtype": "fp32"}, {"base_dtype": "fp32", "mixed_precision": True}]
)
def test_experts_are_traced_in_any_precision(settings):
    """CUDA multiplies experts in any dtype; PyTorch's meta device refuses all but bf16."""
    config = {**LLAMA, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 3}
    checkpoint = inventory_from_config(config, "three experts")
    found, brain = (estimate(checkpoint, method="full", **one) for one in (settings, {"base_dtype": "bf16"}))
    assert found.how == "extrapolated"
    scale = 1 if settings["base_dtype"] == "fp16" else 2
    assert found.breakdown["weights"] == pytest.approx(
        scale * brain.breakdown["weights"], abs=2**21
    )  # blocks cut from segments
    assert found.breakdown["gradients"] == pytest.approx(scale * brain.breakdown["gradients"], rel=0.01)


def test_lora_on_stacked_experts_is_traced_with_and_without_autocast():
    """PEFT leaves autocast for that product by naming the device of its tensors, and PyTorch has no autocast for meta."""
    import torch

    config = {
        "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
        "moe_intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 100,
        "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32, "head_dim": 16,
        "n_routed_experts": 3, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1,
    }  # fmt: skip
    checkpoint, before = inventory_from_config(config, "experts in a stack"), torch.autocast
    for settings in ({}, {"base_dtype": "fp32", "mixed_precision": True}):
        assert estimate(checkpoint, method="lora", rank=4, sequence=32, **settings).how == "traced"
    assert torch.autocast is before


def test_layers_whose_outputs_are_kept_until_the_last_one_are_traced_in_full():
    """DeBERTa's encoder holds the outputs of all its layers and drops them at once, which no copy of one layer would tell."""
    config = {
        "model_type": "deberta-v2", "architectures": ["DebertaV2ForMaskedLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 9, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 128,
    }  # fmt: skip
    checkpoint = inventory_from_config(config, "nine that are kept")
    for batch in (1, 2):  # without a mask the model looks for padding among the values of the tokens, to warn of it
        few, all_layers = (
            estimate(checkpoint, method="lora-xs", rank=4, batch=batch, full_trace=full) for full in (False, True)
        )
        assert few.peak_allocated == all_layers.peak_allocated
        assert few.how == "traced"


def test_layers_of_two_kinds_are_repeated_by_their_period():
    config = {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 500,
        "sliding_window": 32, "max_position_embeddings": 512,
        "layer_types": ["sliding_attention", "full_attention"] * 4,
    }  # fmt: skip
    checkpoint = inventory_from_config(config, "two kinds")
    few, all_layers = (estimate(checkpoint, method="lora", full_trace=full) for full in (False, True))
    assert few.how == "extrapolated"
    assert few.peak_allocated == pytest.approx(all_layers.peak_allocated, rel=1e-3)


def test_parts_add_up_and_are_what_arithmetic_says(llama):
    found = estimate(llama, method="full", base_dtype="fp32")
    assert set(found.breakdown) == set(PARTS)
    assert sum(found.breakdown.values()) == found.peak_allocated <= found.peak_reserved
    assert found.interval[0] < found.peak_reserved < found.interval[1]
    assert found.breakdown["weights"] == pytest.approx(4 * llama.parameters, rel=0.01)
    assert found.breakdown["optimizer"] == pytest.approx(2 * found.breakdown["weights"], rel=0.01)
    assert found.breakdown["gradients"] == pytest.approx(found.breakdown["weights"], rel=0.01)
    assert found.breakdown["adapters"] == 0


def test_adapters_and_their_optimizer_are_counted(llama):
    found = estimate(llama, method="lora", rank=8, targets="q_proj,v_proj", optimizer="adamw-fused")
    trained = 9 * 8 * ((256 + 256) + (256 + 128))
    assert found.breakdown["adapters"] == pytest.approx(4 * trained, rel=0.02)
    assert found.breakdown["optimizer"] == pytest.approx(8 * trained, rel=0.05)


@pytest.mark.parametrize(("quantize", "bytes_each"), [("4bit", 0.5 + 1 / 64 + 4 / (64 * 256)), ("8bit", 1.0)])
def test_a_quantised_base_weighs_its_bits(llama, quantize, bytes_each):
    full = sum(weight.parameters for weight in llama.weights if not weight.is_adaptable)
    small = sum(weight.parameters for weight in llama.weights if weight.is_adaptable)
    found = estimate(llama, method="lora-xs", rank=4, quantize=quantize)
    codes = 63 * 3 * 1024  # look-up tables and norms, a few kilobytes a module
    assert found.breakdown["weights"] == pytest.approx(2 * full + bytes_each * small, abs=codes)


def test_lora_xs_keeps_no_inputs_for_the_backward_pass(llama):
    """arXiv 2405.17604 freezes A and B, so autograd needs neither x (fp32 copies of it here) nor the r-dimensional output."""
    lora, small = (estimate(llama, method=method, rank=4, batch=4) for method in ("lora", "lora-xs"))
    inputs = 9 * (6 * 256 + 512) * 4 * 4 * 128  # six modules of width 256 and one of 512, fp32, 4 x 128 tokens, nine layers
    kept = lora.breakdown["activations"] + lora.breakdown["attention"]
    kept -= small.breakdown["activations"] + small.breakdown["attention"]
    assert kept == pytest.approx(inputs, rel=0.02)
    dropped = estimate(llama, method="lora-xs", rank=4, batch=4, dropout=0.1)
    assert dropped.peak_allocated > small.peak_allocated + 0.1 * inputs


def test_attention_without_a_mask_keeps_no_square_of_the_sequence(llama):
    def attention(sequence, **settings):
        return estimate(llama, method="lora-xs", rank=4, sequence=sequence, **settings).breakdown["attention"]

    assert attention(512) == pytest.approx(4 * attention(128), rel=0.05)
    assert attention(512, attention="eager") > 8 * attention(128, attention="eager")


def test_settings_that_save_memory_do(llama):
    base = {"method": "lora", "rank": 8, "batch": 4}
    plain = estimate(llama, **base).peak_allocated
    assert estimate(llama, gradient_checkpointing=True, **base).peak_allocated < 0.6 * plain
    assert estimate(llama, adapter_dtype="bf16", **base).peak_allocated < plain
    assert estimate(llama, mixed_precision=True, **base).peak_allocated < plain
    assert estimate(llama, keep_logits=True, **base).peak_allocated > plain


def test_a_plan_with_ranks_of_its_own_is_near_its_full_trace(llama):
    from analyzers.ranks import Budget, make_plan

    plan = make_plan(llama, "role", budget=Budget.like_rank(16))
    few, all_layers = (estimate(llama, method="lora-xs", plan=plan, full_trace=full) for full in (False, True))
    assert few.peak_allocated == pytest.approx(all_layers.peak_allocated, rel=0.005)


def test_encoders_and_their_tasks(minilm):
    classifier = estimate(minilm, method="lora", rank=4, batch=4)
    assert classifier.how == "extrapolated"
    assert classifier.breakdown["loss_head"] < 2**20
    assert estimate(minilm, method="lora", rank=4, batch=4, task="causal-lm").breakdown["loss_head"] > 2**26


T5 = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 3,
    "num_heads": 4, "vocab_size": 500, "is_encoder_decoder": True, "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


def test_an_encoder_with_a_decoder():
    found = estimate(inventory_from_config(T5, "tiny t5"), method="lora-xs", rank=4, targets="all-linear", sequence=64)
    assert found.how == "traced"
    assert found.breakdown["attention"] > 0 < found.breakdown["loss_head"]


def test_what_transformers_keeps_in_float32_is_counted_so_and_not_quantised():
    """T5's ``wo``: in float16, and beside a 4-bit base."""
    t5 = inventory_from_config(T5, "tiny t5")
    wo = 6 * 64 * 128  # three layers of the encoder, three of the decoder
    half, brain = (estimate(t5, method="lora", rank=4, base_dtype=dtype).breakdown["weights"] for dtype in ("fp16", "bf16"))
    assert half - brain == 2 * wo
    small = [estimate(t5, method="lora", rank=4, base_dtype=dtype, quantize="4bit") for dtype in ("fp16", "bf16")]
    assert [one.how for one in small] == ["traced", "traced"]
    assert small[0].breakdown["weights"] - small[1].breakdown["weights"] == 2 * wo


def test_micro_batches_after_the_second_change_nothing(llama):
    """They are not even traced: a thousand of them answer as fast as two."""
    many = estimate(llama, method="lora", rank=4, gradient_accumulation=100_000)
    assert many == estimate(llama, method="lora", rank=4, gradient_accumulation=2)
    assert many.peak_allocated > estimate(llama, method="lora", rank=4).peak_allocated


def test_dora_takes_the_matrix_out_of_a_quantised_base(llama):
    """PEFT dequantises W0 to take the norms of its rows, in the compute dtype from 4 bit and in fp32 from 8 bit."""
    import torch
    from peft.utils.integrations import dequantize_module_weight

    from analyzers.memory.quantized import Linear4bit, Linear8bit

    linear = torch.nn.Linear(64, 32, device="meta")
    small = dequantize_module_weight(Linear4bit(linear, torch.bfloat16, double=True, clone_output=False))
    assert (small.shape, small.dtype) == ((32, 64), torch.bfloat16)
    assert dequantize_module_weight(Linear8bit(linear)).dtype == torch.float32
    found = estimate(llama, method="dora", rank=4, quantize="4bit")
    assert found.how == "extrapolated"
    assert found.peak_allocated > estimate(llama, method="lora", rank=4, quantize="4bit").peak_allocated


def test_a_model_of_images_and_text_is_trained_on_text():
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": vision,
        "text_config": {**LLAMA, "num_hidden_layers": 2},
    }  # fmt: skip
    found = estimate(inventory_from_config(config, "tiny llava"), method="lora-xs", rank=4)
    assert found.how == "traced"
    assert found.breakdown["loss_head"] > 0


def test_sentences_spell_figures_as_the_page_does_beside_them(llama):
    """ "38 % of 0.1 GiB" stood next to a card that said 131 MiB, and "±3%" next to "38 %"."""
    from app.units import gib_text

    settings = MemorySettings(
        batch=1, base_dtype="bf16", optimizer="adamw", method="lora-xs", rank=4, sequence=64, quantize="4bit"
    )
    found = estimate_memory(llama, settings, use_cache=False)
    assert f"% of {gib_text(found.peak_allocated)}" in what_decides(llama, settings, found)[0]
    assert re.search(r": −3 %, \+\d+ %\.$", found.reasons[0])
    assert not [sentence for sentence in found.reasons if re.search(r"\d%", sentence)]
    assert found.reasons[-1].endswith(" KiB (kbit_prepared).")  # not 0.0 GiB


def test_checkpointing_of_frozen_layers_is_said_to_cost_memory(llama):
    """A head on frozen layers keeps nothing of them, but checkpointing keeps the input of each."""
    settings = MemorySettings(
        base_dtype="bf16", optimizer="adamw", method="head-only", batch=64, sequence=128, task="sequence-classification"
    )
    plain, checkpointed = (estimate_memory(llama, settings.but(gradient_checkpointing=on)) for on in (False, True))
    more = (checkpointed.peak_reserved - plain.peak_reserved) / 2**20
    assert more > 0.05 * plain.peak_reserved / 2**20
    assert f"would need {more:.0f} MiB more here" in what_decides(llama, settings)[1]
    assert f"needs {more:.0f} MiB more here" in what_decides(llama, settings.but(gradient_checkpointing=True))[1]


def test_what_cannot_be_traced_gets_a_closed_form_and_says_so():
    """BART's classifier looks for the end-of-sequence tokens, whose values nothing on the meta device knows."""
    config = {
        "model_type": "bart", "architectures": ["BartModel"], "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "vocab_size": 500, "max_position_embeddings": 128, "is_encoder_decoder": True,
    }  # fmt: skip
    checkpoint = inventory_from_config(config, "tiny bart")
    found = estimate(checkpoint, method="lora", targets="all-linear", sequence=64, task="sequence-classification")
    assert found.how == "closed form"
    assert "cannot be traced" in found.reasons[0]
    assert found.interval[1] >= 1.2 * found.peak_reserved
    assert sum(found.breakdown.values()) == found.peak_allocated
    assert min(found.breakdown.values()) >= 0
    several = estimate(checkpoint, method="lora", targets="all-linear", sequence=64, task="sequence-classification", gpus=4)
    assert "what 4 GPUs share is not taken off" in several.reasons[-1]


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.config])
def test_the_closed_form_counts_every_method_as_its_file_does(method):
    """TinyLoRA trains a few numbers and PSOFT a rotation: neither is LoRA."""
    checkpoint = open_model("roberta-large")
    settings = MemorySettings(method=method, rank=8).resolved(checkpoint)
    found = closed_form(checkpoint, settings, settings.adapter(checkpoint), "for this test")
    assert found.details["gradients", "all"] == 4 * adapter_size(checkpoint, method, rank=8).trainable


def test_llama_3_8b_and_what_decides():
    """Figures of an independent implementation of the same design: LoRA 36.4 GiB, 26.5 for LoRA-XS; 18.9 and 18.5 checkpointed."""
    from sample_models import open_model

    checkpoint = open_model("llama-3-8b")
    for method, checkpointing, gib in (
        ("lora", False, 36.4),
        ("lora-xs", False, 26.5),
        ("lora", True, 18.9),
        ("lora-xs", True, 18.5),
    ):
        settings = MemorySettings(**PLAIN, method=method, rank=16, sequence=2048, gradient_checkpointing=checkpointing)
        assert estimate_memory(checkpoint, settings).peak_allocated / GIB == pytest.approx(gib, rel=0.02)
    sentences = what_decides(checkpoint, MemorySettings(**PLAIN, method="lora-xs", rank=16, sequence=2048))
    assert len(sentences) == 3
    assert "base weights" in sentences[0]
    assert "checkpointing would save" in sentences[1]
    assert "almost nothing" in sentences[2]


def test_an_estimate_is_kept_and_a_damaged_file_is_no_answer(llama, own_folders):
    settings = MemorySettings(batch=1, base_dtype="bf16", optimizer="adamw", method="lora-xs", rank=4, sequence=64)
    first = estimate_memory(llama, settings)
    (kept,) = (own_folders / "cache" / "memory").rglob("*.kept")
    assert estimate_memory(llama, settings) == first
    sound = kept.read_bytes()
    for damage in (sound.replace(b'"peak_allocated": ', b'"peak_allocated": 9'), b"null", b"[" * 100_000, b"", sound[:-3]):
        kept.write_bytes(damage)
        assert estimate_memory(llama, settings) == first
        assert kept.read_bytes() == sound
    estimate_memory(llama, settings.but(batch=2))
    assert len(list((own_folders / "cache" / "memory").rglob("*.kept"))) == 2


@pytest.mark.slow
def test_public_measurements(shared_data):
    """The bar of the project: on one GPU with all settings known 2 % on nine rows of ten and 5 % on all, on several 5 % of the
    allocated peak on all, and the reserved one in its interval on nine of ten."""
    from benchmarks.memory_accuracy import measure, read_cases

    rows = [measure(case) for case in read_cases(shared_data) if case.source in ("HF docs", "fms")]
    alone, spread = ([row for row in rows if row.case.sharded is sharded] for sharded in (False, True))
    assert len(alone) >= 20
    assert len(spread) >= 20
    assert sum(abs(row.error) <= 0.02 for row in alone) >= 0.9 * len(alone)
    assert max(abs(row.error) for row in alone) <= 0.05
    assert max(abs(row.error) for row in spread) <= 0.05
    assert sum(row.inside() for row in alone) >= 0.9 * len(alone)


def test_autocasts_copies_go_with_each_recomputed_layer(llama):
    """PyTorch leaves autocast, and drops its copies of weights, at the end of each recomputation in the backward pass."""
    settings = {"method": "full", "base_dtype": "fp32", "mixed_precision": True, "batch": 8, "optimizer": "adamw-fused"}
    kept, recomputed = (estimate(llama, gradient_checkpointing=on, **settings) for on in (False, True))
    assert recomputed.how == "extrapolated"
    assert recomputed.peak_reserved < kept.peak_reserved
    whole = estimate(llama, gradient_checkpointing=True, full_trace=True, **settings)
    assert recomputed.peak_reserved == whole.peak_reserved
