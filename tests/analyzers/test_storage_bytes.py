"""Predicted sizes against files that PEFT's save_pretrained really wrote, to the byte."""

from __future__ import annotations

import warnings

import pytest

from analyzers.methods import METHODS, AdapterSpec, peft_config
from analyzers.storage import adapter_size
from loraxs_core.architecture import AUTO_CLASSES
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.targets import select_targets, target_patterns


def tiny_configs():
    import transformers as t

    return {
        "bert": t.BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48),
        "gpt2": t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=40, pad_token_id=0),
        "llama": t.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            pad_token_id=0,
        ),
        "t5": t.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0),
        "opt": t.OPTConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32
        ),
        "mpnet": t.MPNetConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=11, num_attention_heads=4, intermediate_size=48
        ),
    }


OWN_CLASS = {
    "bert": "BertModel",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "t5": "T5ForConditionalGeneration",
    "opt": "OPTForCausalLM",
    "mpnet": "MPNetForMaskedLM",
}
ARCHITECTURES = list(OWN_CLASS)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Checkpoint]:
    """Checkpoints on disk, one of each architecture, random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    found = {}
    for name, config in tiny_configs().items():
        folder = tmp_path_factory.mktemp(f"size_{name}")
        getattr(transformers, OWN_CLASS[name])(config).save_pretrained(folder)
        found[name] = Checkpoint.open(folder, name=name)
    return found


def written(checkpoint, config, folder, *, task=None, dtype="float32", own_class=None):
    """Bytes of adapter_model.safetensors after PEFT really built and saved the adapter."""
    import torch
    import transformers
    from peft import get_peft_model

    loader = getattr(transformers, own_class if task is None else AUTO_CLASSES[task])
    model = loader.from_pretrained(checkpoint.folder, dtype=getattr(torch, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config, autocast_adapter_dtype=dtype == "float32")
        adapted.save_pretrained(folder)
    return (folder / "adapter_model.safetensors").stat().st_size, adapted


def spec_for(checkpoint, method, rank, task=None, targets="paper", **options):
    weights = select_targets(checkpoint, targets)
    return AdapterSpec(method, target_patterns(checkpoint, weights), rank=rank, task_type=task, options=options)


@pytest.mark.parametrize("method", ["lora-xs", "lora", "vera"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_main_methods_to_the_byte(tiny_models, tmp_path, architecture, method):
    checkpoint = tiny_models[architecture]
    for rank, dtype, targets in ((1, "float32", "paper"), (8, "bfloat16", "paper"), (11, "float32", "all-linear")):
        config = peft_config(spec_for(checkpoint, method, rank, targets=targets))
        real, adapted = written(checkpoint, config, tmp_path / f"{rank}", dtype=dtype, own_class=OWN_CLASS[architecture])
        size = adapter_size(checkpoint, method, rank=rank, dtype=dtype, targets=targets)
        assert size.file_bytes == real, (rank, dtype)
        assert size.trainable == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.config])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_every_method_with_a_classifier_to_the_byte(tiny_models, tmp_path, architecture, method):
    checkpoint = tiny_models[architecture]
    for rank in (2, 8):
        config = peft_config(spec_for(checkpoint, method, rank, task="SEQ_CLS"))
        real, _ = written(checkpoint, config, tmp_path / f"{rank}", task="SEQ_CLS")
        assert adapter_size(checkpoint, method, rank=rank, task="sequence-classification").file_bytes == real, rank
