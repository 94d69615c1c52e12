"""Passes through the model besides the training step's own: the reference of preference training, and the evaluation between steps."""

import pytest

from analyzers.memory import MemorySettings, estimate_memory
from analyzers.memory.evaluation import MOST_JOINS, forward_passes
from loraxs_core.architecture import inventory_from_config
from loraxs_core.errors import SettingsError
from tests.analyzers.test_memory_estimate import LLAMA

WIDE = {**LLAMA, "vocab_size": 60_000}
LOGITS = 8 * 64 * WIDE["vocab_size"]  # numbers of one batch's
TRAINED = {"method": "lora", "rank": 4, "batch": 1, "sequence": 64, "base_dtype": "bf16"}


def estimate(config=WIDE, preset="trainer", **settings):
    checkpoint = inventory_from_config(config, "a small model")
    return estimate_memory(checkpoint, MemorySettings.preset(preset, **{**TRAINED, **settings}), use_cache=False)


def parameters(config=WIDE):
    return inventory_from_config(config, "a small model").parameters


# Preferences


def test_dpos_defaults_are_those_of_trl():
    trl = pytest.importorskip("trl")
    from dataclasses import fields

    known = {field.name: field.default for field in fields(trl.DPOConfig)}
    ours = MemorySettings.preset("dpo")
    assert known["max_length"] == ours.sequence
    assert bool(known["gradient_checkpointing"]) == ours.gradient_checkpointing
    assert known["disable_dropout"]
    assert not known["precompute_ref_log_probs"]
    assert (ours.mixed_precision, ours.preference) == (True, "dpo")


def test_a_batch_of_pairs_is_twice_as_many_sequences():
    pairs = estimate(preset="dpo", preference="dpo-precomputed", batch=4, sequence=256)
    alone = estimate(preset="sft", batch=8, sequence=256)
    assert pairs.peak_allocated == alone.peak_allocated
    assert any("8 sequences go through the model at once" in reason for reason in pairs.reasons)


def test_the_reference_of_an_adapter_is_the_model_itself_and_of_a_full_fine_tune_a_second_one():
    settings = {"preset": "dpo", "mixed_precision": False, "gradient_checkpointing": False}
    weights = 2 * parameters()
    for method, models in (("lora", 1), ("full", 2)):
        found = estimate(method=method, **settings)
        assert found.how == "extrapolated"
        assert found.breakdown["weights"] == pytest.approx(models * weights, rel=0.03)
    assert estimate(preference="dpo-model", **settings).breakdown["weights"] == pytest.approx(2 * weights, rel=0.03)


def test_the_reference_runs_while_the_models_activations_wait():
    """Without checkpointing what it needs for a layer comes on top of them; checkpointed, the recomputed layer needs more."""
    settings = {"preset": "dpo", "mixed_precision": False, "batch": 8, "sequence": 256, "config": {**LLAMA, "vocab_size": 500}}
    plain = {**settings, "gradient_checkpointing": False}
    assert estimate(**plain).peak_allocated > estimate(preference="dpo-precomputed", **plain).peak_allocated
    alone = estimate(preference="dpo-precomputed", **settings).peak_allocated
    assert estimate(**settings).peak_allocated == pytest.approx(alone, rel=0.001)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("full", {"eval_batch": 4}),
        pytest.param("full", {"gradient_checkpointing": False}, marks=pytest.mark.slow),
        pytest.param("lora", {}, marks=pytest.mark.slow),
        pytest.param("lora", {"gradient_checkpointing": False, "eval_batch": 4}, marks=pytest.mark.slow),
    ],
)
def test_repeated_layers_are_the_whole_model_with_a_reference(method, more):
    few, whole = (estimate(preset="dpo", method=method, full_trace=full, base_dtype="fp32", **more) for full in (False, True))
    assert few.how == "extrapolated"
    assert (few.peak_allocated, few.peak_reserved) == (whole.peak_allocated, whole.peak_reserved)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"preference": "ppo"}, "Unknown preference 'ppo'; there are dpo"),
        ({"preference": "dpo"}, "give the loss 'trl'"),
        ({"preference": "dpo", "loss": "trl", "padding_free": True}, "pads its pairs"),
        ({"eval_predictions": 8}, "give its eval_batch"),
        ({"eval_batch": 0}, "eval batch must be a whole number of at least 1"),
        ({"eval_predictions": -1}, "eval predictions must be a whole number of at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, says):
    with pytest.raises(SettingsError, match=says):
        MemorySettings(**settings)


def test_preferences_are_of_causal_models():
    bert = {**LLAMA, "model_type": "bert", "architectures": ["BertModel"]}
    with pytest.raises(SettingsError, match="trains causal models"):
        estimate(bert, preset="dpo")


# Evaluation


def test_a_wide_evaluation_can_be_the_peak():
    """Logits in bf16, in fp32 for the loss, and their log-softmax, of eight sequences where training has one."""
    train, both = estimate(), estimate(eval_batch=8)
    assert both.how == "extrapolated"
    assert both.peak_allocated > train.peak_allocated
    assert both.breakdown["loss_head"] == pytest.approx(10 * LOGITS, rel=0.05)
    assert estimate(eval_batch=1).peak_allocated == train.peak_allocated


def test_predictions_wait_on_the_gpu_and_are_copied_at_each_step():
    few, many = (estimate(eval_batch=8, eval_predictions=8 * steps) for steps in (10, 40))
    assert many.peak_allocated - few.peak_allocated == pytest.approx(2 * 30 * 2 * LOGITS, rel=0.02)  # those before and all
    assert any("eval_accumulation_steps" in reason for reason in many.reasons)


def test_accelerate_hands_out_logits_in_fp32_under_mixed_precision():
    settings = {"eval_batch": 8, "eval_predictions": 8 * 20, "base_dtype": "fp32"}
    half, full = (estimate(mixed_precision=True, **settings).peak_allocated, estimate(**settings).peak_allocated)
    assert half == pytest.approx(full, rel=0.02)


def test_a_fused_loss_spares_the_evaluation_its_logits_unless_they_are_asked_for():
    spared, asked = (estimate(loss="trl", eval_batch=8, eval_predictions=wanted) for wanted in (0, 8))
    assert asked.peak_allocated - spared.peak_allocated > 5 * LOGITS


@pytest.mark.parametrize(("predictions", "joined"), [(0, 1), (8, 1), (9, 2), (80, 10), (8 * 10_000, 10_000)])
def test_all_steps_of_an_evaluation_are_counted_and_few_recorded(predictions, joined):
    passes = forward_passes(predictions, 8)
    assert len(passes) + sum(map(sum, passes)) == joined
    assert max(map(len, passes)) <= MOST_JOINS
