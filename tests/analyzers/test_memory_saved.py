"""What a traced step keeps for the backward pass against real tensors: the same model with a real PEFT adapter on the CPU."""

from dataclasses import replace

import pytest
import torch
import transformers
from peft import get_peft_model

from analyzers.memory import MemorySettings
from analyzers.memory.built_model import build
from analyzers.methods import peft_config
from loraxs_core.architecture import inventory_from_config

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 100, "max_position_embeddings": 64,
}  # fmt: skip
BATCH, TOKENS = 2, 32


def kept_bytes(model, batch: dict) -> int:
    """Bytes of the storages that autograd saves in a forward pass, the model's own tensors left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other storage takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(**batch)
    assert outputs.loss is not None
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("method", ["full", "lora", "dora", "vera", "lora-xs", "ia3"])
def test_a_traced_step_keeps_what_a_real_one_keeps(method):
    checkpoint = inventory_from_config({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES}, "two layers")
    settings = MemorySettings(
        method=method, rank=4, batch=BATCH, sequence=TOKENS, base_dtype="fp32", attention="eager", padding=True
    )
    adapter = settings.adapter(checkpoint)
    shapes = {name: torch.empty(BATCH, TOKENS, dtype=torch.long, device="meta") for name in ("input_ids", "labels")}
    traced = kept_bytes(build(checkpoint, settings, adapter).model, {**shapes, "attention_mask": shapes["labels"].clone()})

    config = transformers.LlamaConfig(**SIZES, use_cache=False, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config)
    if adapter is not None:
        model = get_peft_model(model, peft_config(replace(adapter, task_type="CAUSAL_LM")))
    tokens = torch.arange(BATCH * TOKENS).reshape(BATCH, TOKENS)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    assert traced == kept_bytes(model.train(), {"input_ids": tokens, "labels": tokens, "attention_mask": mask})
