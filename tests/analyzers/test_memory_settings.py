"""Settings of a memory estimate: what is refused, in one sentence, and what the defaults follow from."""

import pytest

from analyzers.memory import GPUS, MemorySettings, estimate_memory, find_gpu, what_decides
from analyzers.memory.settings import default_task, position_limit
from loraxs_core.architecture import inventory_from_config
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import CheckpointError, SettingsError, WorkbenchError


@pytest.fixture(autouse=True)
def _own(own_folders):
    """A cache of this test alone."""


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("batch", 0),
        ("batch", 1.5),
        ("sequence", -1),
        ("gradient_accumulation", 0),
        ("gpus", 0),
        ("rank", 0),
        ("base_dtype", "fp8"),
        ("adapter_dtype", "half"),
        ("quantize", "3bit"),
        ("optimizer", "lamb"),
        ("loss", "focal"),
        ("task", "translation"),
        ("attention", "paged"),
        ("sharding", "magic"),
        ("dropout", 1.0),
        ("method", "magic"),
    ],
)
def test_a_value_no_fine_tune_can_have_is_named(setting, value):
    with pytest.raises(SettingsError) as refused:
        MemorySettings(**{setting: value})
    message = str(refused.value)
    assert str(value) in message
    assert setting.replace("_", " ") in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize("setting", ["batch", "sequence", "gradient_accumulation", "gpus", "labels", "rank"])
def test_a_value_beyond_any_fine_tune_is_refused_before_anything_is_built(setting):
    """transformers would name ten billion classes one by one, and PyTorch cannot count the bytes of such batches."""
    with pytest.raises(SettingsError, match=rf"^{setting.replace('_', ' ')} must be at most [\d,]+, not 10,000,000,000\.$"):
        MemorySettings(**{setting: 10**10})


def test_a_quantised_base_cannot_be_trained_in_full():
    with pytest.raises(SettingsError, match="cannot be trained in full"):
        MemorySettings(method="full", quantize="4bit")


def test_padding_follows_the_batch_unless_said():
    assert not MemorySettings(batch=1).padded
    assert MemorySettings(batch=2).padded
    assert not MemorySettings(batch=2, padding=False).padded


def test_a_sequence_beyond_a_table_of_positions(tiny_bert):
    checkpoint = Checkpoint.open(tiny_bert)
    limit = position_limit(checkpoint)
    with pytest.raises(
        SettingsError, match=f"positions for {limit} tokens, fewer than a sequence of {limit + 1}; choose at most"
    ):
        estimate_memory(checkpoint, MemorySettings(sequence=limit + 1, rank=4))


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"model_type": "longformer", "max_position_embeddings": 4098}, 4096),
        ({"model_type": "llava", "text_config": {"max_position_embeddings": 2048}}, 2048),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "mamba"}, None),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": False}, None),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": True}, 512),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512}, 512),
    ],
)
def test_how_many_positions_a_model_has(config, limit):
    assert position_limit(Checkpoint("any", config, [])) == limit


def test_an_encoder_is_fine_tuned_as_a_classifier_whether_or_not_the_paper_knew_it():
    """ModernBERT has no causal model: asked without a task, the command and the page refused it."""
    config = {
        "model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0, "max_position_embeddings": 64,
    }  # fmt: skip
    checkpoint = inventory_from_config(config, "tiny modernbert")
    assert default_task(checkpoint) == "SEQ_CLS"
    assert estimate_memory(checkpoint, MemorySettings(rank=4, sequence=16), use_cache=False).how == "traced"
    for kind, task in (("llama", "CAUSAL_LM"), ("xlnet", "CAUSAL_LM"), ("mamba", "CAUSAL_LM"), ("roberta", "SEQ_CLS")):
        assert default_task(Checkpoint("any", {"model_type": kind}, [])) == task


def test_a_model_without_gradient_checkpointing_says_so():
    """transformers' Trainer would not start; a closed form would promise a saving that is none."""
    config = {
        "model_type": "mpnet", "architectures": ["MPNetForMaskedLM"], "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50, "max_position_embeddings": 66,
    }  # fmt: skip
    checkpoint = inventory_from_config(config, "tiny mpnet")
    settings = MemorySettings(method="lora-xs", rank=4, sequence=64)
    said = "transformers has no gradient checkpointing for mpnet models such as tiny mpnet"
    with pytest.raises(SettingsError, match=f"{said}; leave it out"):
        estimate_memory(checkpoint, settings.but(gradient_checkpointing=True), use_cache=False)
    _, checkpointing, against = what_decides(checkpoint, settings)
    assert checkpointing == f"{said}."
    assert against.startswith("Against LoRA of rank 4, LoRA-XS saves")
    assert "checkpointing" not in against


def test_a_rank_larger_than_the_matrix(tiny_llama):
    with pytest.raises(SettingsError, match="larger than the matrix"):
        estimate_memory(Checkpoint.open(tiny_llama), MemorySettings(sequence=16, rank=1000))


def test_a_target_that_matches_nothing(tiny_llama):
    with pytest.raises(CheckpointError, match="no_such_proj"):
        estimate_memory(Checkpoint.open(tiny_llama), MemorySettings(sequence=16, rank=4, targets="no_such_proj"))


@pytest.mark.parametrize("config", [{}, {"model_type": "no-such-model"}, {"model_type": "llama", "hidden_size": "wide"}])
def test_a_config_that_transformers_cannot_build(tiny_llama, config):
    weights = Checkpoint.open(tiny_llama).weights
    with pytest.raises(WorkbenchError) as refused:
        estimate_memory(Checkpoint("broken", config, weights), MemorySettings(sequence=16, rank=4))
    assert "broken" in str(refused.value)


def test_catalogue_of_gpus_spans_8_to_192_gb():
    sizes = [gpu.gigabytes for gpu in GPUS]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (8, 192)
    for gpu in GPUS:
        assert 0.85 * gpu.gigabytes * 2**30 < gpu.memory < 1.1 * gpu.gigabytes * 2**30
        assert gpu.bytes < gpu.memory


def test_a_gpu_by_name_or_size():
    assert find_gpu("4090").gigabytes == 24
    assert find_gpu(40).bytes < 40 * 2**30
    assert find_gpu("48").gigabytes == 48
    with pytest.raises(SettingsError, match="Voodoo"):
        find_gpu("Voodoo 2")
    for size in (0, -8, 10_000, "nan", ""):
        with pytest.raises(SettingsError, match="1 to 1000"):
            find_gpu(size)
