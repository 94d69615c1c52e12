"""What fits a GPU, and one GPU's share of several."""

import pytest

from analyzers.memory import Gpu, MemorySettings, estimate_memory, find_gpu, fit, fit_methods
from analyzers.memory.distributed import Sharding, one_gpu
from analyzers.memory.fitting import SEQUENCE_STEP, largest
from analyzers.memory.whole_model import record
from loraxs_core.architecture import inventory_from_config


@pytest.fixture(autouse=True)
def _own(own_folders):
    """A cache of this test alone."""


@pytest.fixture(scope="module")
def model():
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 8000, "max_position_embeddings": 256,
    }  # fmt: skip
    return inventory_from_config(config, "six layers")


@pytest.mark.parametrize("answer", [0, 1, 2, 3, 17, 99, 100])
@pytest.mark.parametrize(
    "curve", [lambda n: 10 * n, lambda n: n * n, lambda n: 1000 + n, lambda n: n + 50 * (n // 7), lambda n: 5]
)
def test_the_largest_number_that_holds(answer, curve):
    tried = []

    def bytes_at(number):
        tried.append(number)
        assert 1 <= number <= 100
        return curve(number)

    room = curve(answer)
    expected = max((number for number in range(1, 101) if curve(number) <= room), default=0)
    assert largest(bytes_at, 100, room) == expected
    assert len(tried) <= 16


def test_what_fits_fits_and_one_more_does_not(model):
    settings = MemorySettings(
        batch=1, base_dtype="bf16", optimizer="adamw", method="lora-xs", rank=8, sequence=128, padding=False
    )
    gpu = Gpu("a small one", int(1.1 * 2**30), 1.1)
    found = fit(model, settings, gpu)
    assert found.batch >= 1
    assert found.at_batch.interval[1] <= gpu.bytes
    assert estimate_memory(model, settings.but(batch=found.batch + 1)).interval[1] > gpu.bytes
    assert found.sequence == 256
    assert found.limited_by_model


@pytest.mark.parametrize("positions", [40, 100, 128])
def test_the_longest_sequence_is_all_the_positions_there_are(model, positions):
    short = inventory_from_config({**model.config, "max_position_embeddings": positions}, "few positions")
    found = fit(
        short,
        MemorySettings(batch=1, base_dtype="bf16", optimizer="adamw", method="lora-xs", rank=8, sequence=32),
        find_gpu(24),
    )
    assert (found.sequence, found.limited_by_model) == (positions, True)
    assert found.at_sequence is not None


def test_a_large_gpu_holds_more_than_a_few_thousand_short_sequences(model):
    settings = MemorySettings(
        batch=1, base_dtype="bf16", optimizer="adamw", method="lora-xs", rank=8, sequence=1, task="sequence-classification"
    )
    gpu = find_gpu("B200")
    found = fit(model, settings, gpu)
    assert found.batch > 4096
    assert estimate_memory(model, settings.but(batch=found.batch)).interval[1] <= gpu.bytes
    assert estimate_memory(model, settings.but(batch=found.batch + 1)).interval[1] > gpu.bytes


def test_a_batch_that_fits_is_padded_as_an_estimate_of_it_would_be(model):
    """Padding left open means: as usual, when there are several."""
    settings = MemorySettings(batch=1, base_dtype="bf16", optimizer="adamw", method="lora", rank=8, sequence=256)
    gpu = Gpu("a small one", int(1.3 * 2**30), 1.3)
    found = fit(model, settings, gpu)
    assert found.batch > 1
    assert found.at_batch == estimate_memory(model, settings.but(batch=found.batch))
    assert estimate_memory(model, settings.but(batch=found.batch + 1)).interval[1] > gpu.bytes


def test_nothing_fits_a_gpu_that_is_too_small(model):
    found = fit(
        model,
        MemorySettings(batch=1, base_dtype="bf16", optimizer="adamw", method="full", sequence=64),
        Gpu("tiny", 2**29, 0.5),
    )
    assert (found.batch, found.sequence, found.at_batch, found.at_sequence) == (0, 0, None, None)


def test_methods_side_by_side_with_a_quantised_base_leave_full_fine_tuning_out(model):
    gpu = Gpu("a small one", int(1.1 * 2**30), 1.1)
    found = fit_methods(
        model,
        MemorySettings(batch=1, base_dtype="bf16", optimizer="adamw", sequence=256, quantize="4bit"),
        gpu,
        ("full", "lora-xs"),
    )
    assert [one.method for one in found] == ["lora-xs"]
    assert found[0].batch >= 1
    assert found[0].sequence % SEQUENCE_STEP == 0


def test_sharding_shrinks_what_it_shards(model):
    full = {"method": "full", "batch": 1, "sequence": 64, "base_dtype": "fp32", "optimizer": "adamw"}
    alone = estimate_memory(model, MemorySettings(**full))
    parts = {
        sharding: estimate_memory(model, MemorySettings(gpus=4, sharding=sharding, **full))
        for sharding in ("ddp", "zero2", "fsdp")
    }
    assert parts["ddp"].breakdown["weights"] == alone.breakdown["weights"]
    assert parts["ddp"].breakdown["gradients"] > 1.9 * alone.breakdown["gradients"]
    assert parts["zero2"].breakdown["optimizer"] == pytest.approx(alone.breakdown["optimizer"] / 4, rel=0.02)
    assert parts["zero2"].breakdown["weights"] == alone.breakdown["weights"]
    layers = sum(weight.parameters for weight in model.weights if weight.is_adaptable) * 4
    outside = alone.breakdown["weights"] - layers
    assert parts["fsdp"].breakdown["weights"] == pytest.approx(alone.breakdown["weights"] / 4 + outside, rel=0.02)
    widths = {name: one.interval[1] / one.peak_reserved for name, one in parts.items()}
    assert widths["fsdp"] > widths["ddp"] > alone.interval[1] / alone.peak_reserved
    assert "FSDP" in parts["fsdp"].reasons[1]


def test_one_gpu_is_the_recording_itself(model):
    settings = MemorySettings(batch=1, base_dtype="bf16", optimizer="adamw", method="lora", rank=4, sequence=64)
    trace = record(model, settings, settings.adapter(model)).trace
    assert one_gpu(trace, Sharding("fsdp", 1, 4)) is trace


def test_a_card_is_smaller_than_its_name():
    assert find_gpu(24).bytes < 23.5 * 2**30
