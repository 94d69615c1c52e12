"""Recordings at several batches: the third is worked out from two, and is what recording it would have given."""

from dataclasses import replace

import pytest

from analyzers.memory import MemorySettings, batch_growth, estimate_memory
from analyzers.memory.trace import Trace
from loraxs_core.architecture import inventory_from_config
from tests.analyzers.test_memory_estimate import LLAMA, T5

MODELS = {
    "llama": LLAMA,
    "t5": T5,
    "bert": {
        "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
        "num_attention_heads": 4, "vocab_size": 500, "max_position_embeddings": 512,
    },
    "mixtral": {**LLAMA, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 3},
    "mamba": {
        "model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 6, "vocab_size": 500,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _empty():
    batch_growth.forget()
    yield
    batch_growth.forget()


@pytest.fixture
def recorded(monkeypatch):
    """The batches that were recorded, in turn."""
    asked = []
    original = batch_growth.record_steps

    def counting(checkpoint, settings, adapter):
        asked.append(settings.batch)
        return original(checkpoint, settings, adapter)

    monkeypatch.setattr(batch_growth, "record_steps", counting)
    return asked


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("llama", {"method": "lora", "gradient_checkpointing": True, "mixed_precision": True, "base_dtype": "fp32"}),
        ("llama", {"method": "lora-xs", "quantize": "4bit", "optimizer": "adamw-8bit", "gradient_accumulation": 2}),
        ("bert", {"method": "vera", "rank": 8, "padding": False}),
        ("t5", {"method": "lora-xs", "targets": "all-linear"}),
        ("mixtral", {"method": "lora"}),
        ("mamba", {"method": "full", "optimizer": "adafactor"}),
        ("llama", {"method": "lora-xs", "attention": "eager", "gpus": 2, "sharding": "fsdp"}),
    ],
)
def test_the_third_batch_is_worked_out_to_the_byte(model, settings, recorded):
    checkpoint = inventory_from_config(MODELS[model], model)
    asked = MemorySettings(**({} if settings["method"] == "full" else {"rank": 4}) | settings, sequence=48)
    tried = (5, 2, 9, 40, 3, 5)
    found = [estimate_memory(checkpoint, asked.but(batch=batch), use_cache=False) for batch in tried]
    assert set(recorded) == {5, 2}  # each as a few layers, and whole where those do not repeat
    for batch, one in zip(tried, found, strict=True):
        batch_growth.forget()
        assert one == estimate_memory(checkpoint, asked.but(batch=batch), use_cache=False)


def test_kernels_that_change_over_with_the_number_of_tokens_are_recorded_on_each_side(recorded):
    """A trained embedding's backward pass sorts more than 3,072 tokens, and holds them four times over."""
    checkpoint = inventory_from_config(LLAMA, "nine layers")
    settings = MemorySettings(batch=1, base_dtype="bf16", optimizer="adamw", method="full", sequence=512)
    found = [estimate_memory(checkpoint, settings.but(batch=batch), use_cache=False) for batch in (2, 4, 6, 8, 9, 30)]
    assert recorded == [2, 4, 8, 9]
    batch_growth.forget()
    assert found[-1] == estimate_memory(checkpoint, settings.but(batch=30), use_cache=False)


def test_one_sequence_is_recorded_for_itself(recorded):
    checkpoint = inventory_from_config(LLAMA, "nine layers")
    settings = MemorySettings(batch=1, base_dtype="bf16", optimizer="adamw", method="lora", rank=4, sequence=32, padding=True)
    for batch in (2, 3, 1):
        found = estimate_memory(checkpoint, settings.but(batch=batch), use_cache=False)
    assert recorded == [2, 3, 1]
    batch_growth.forget()
    assert found == estimate_memory(checkpoint, settings, use_cache=False)


def test_other_settings_are_other_recordings(recorded):
    checkpoint = inventory_from_config(LLAMA, "nine layers")
    settings = MemorySettings(batch=1, base_dtype="bf16", optimizer="adamw", method="lora", rank=4, sequence=32)
    for batch in (2, 3):
        estimate_memory(checkpoint, settings.but(batch=batch), use_cache=False)
    for changed in ({"rank": 5}, {"sequence": 33}, {"padding": False}, {"dropout": 0.1}, {"full_trace": True}):
        estimate_memory(checkpoint, settings.but(batch=4, **changed), use_cache=False)
    estimate_memory(inventory_from_config({**LLAMA, "intermediate_size": 640}, "nine layers"), settings.but(batch=4), use_cache=False)  # fmt: skip
    assert recorded == [2, 3, 4, 4, 4, 4, 4, 4]


TWO = Trace(
    sizes=[100, 20],
    births=[("build", "w"), ("forward", "x")],
    owners=[None, None],
    events=[0, 1, ~1],
    marks=[(0, "build", None), (1, "forward", None)],
    labels={0: "weights"},
)


@pytest.mark.parametrize(
    ("at_three", "growth"),
    [
        ({"sizes": [100, 30]}, (0, 10)),
        ({"sizes": [100, 45]}, None),  # the square of the batch: 5, 20, 45
        ({"sizes": [100, 10]}, None),  # less with more sequences
        ({"sizes": [100, 30], "events": [0, 1]}, None),
        ({"sizes": [100, 30], "marks": [(0, "build", None), (1, "backward", None)]}, None),
        ({"sizes": [100, 30], "labels": {0: "adapters"}}, None),
        ({"sizes": [100, 30, 8], "births": [*TWO.births, ("forward", "y")], "owners": [None] * 3, "events": [0, 1, 2]}, None),
    ],
)
def test_two_recordings_that_differ_by_more_than_the_batch_tell_nothing(at_three, growth):
    assert batch_growth._growth(batch_growth._Kept(2, TWO), 3, replace(TWO, **at_three)) == growth


def test_a_size_that_does_not_grow_by_whole_bytes_tells_nothing():
    assert batch_growth._growth(batch_growth._Kept(2, TWO), 4, replace(TWO, sizes=[100, 31])) is None


def test_recordings_kept_are_bounded(monkeypatch):
    monkeypatch.setattr(batch_growth, "MOST_EVENTS", 1)
    checkpoint = inventory_from_config(LLAMA, "nine layers")
    for sequence in (16, 32, 48):
        estimate_memory(checkpoint, MemorySettings(method="lora", rank=4, batch=2, sequence=sequence), use_cache=False)
    assert len(batch_growth._kept) == 1
