"""Tiny random models of transformers' own classes: its default configuration of an architecture, with every size made small."""

from __future__ import annotations

import re

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

AUTO_CLASSES = (
    "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText", "AutoModelForMaskedLM",
    "AutoModelForImageClassification", "AutoModel",
)  # fmt: skip
MOST_NUMBERS = 3_000_000  # a model that stays larger is not tiny
# A setting whose name ends so -> its small value; the first that fits. A whole number above it is replaced.
SMALL = (
    (r"vocab_size(_per_layer_input)?", 128),
    (r"(num_key_value_heads|num_kv_heads|kv_heads)", 2),
    (r"(heads|n_head)", 4),
    (r"(num_hidden_layers|n_layers?|num_layers|_layers|depth)", 2),
    (r"(head_dim|d_kv)", 8),
    (r"(intermediate_size|ffn_dim|d_ff|n_inner|ffn_hidden_size|mlp_dim|inner_dim|feed_forward\w*)", 64),
    (r"(hidden_size|d_model|n_embd|embed_dim|hidden_dim|width|model_dim|^dim|embedding_size|projection_dim|hidden_channels|out_channels)", 32),
    (r"(num_experts|n_routed_experts|num_local_experts)", 4),
    (r"(experts_per_tok|top_k|topk|num_selected_experts|moe_k)", 2),
    (r"(n_group|topk_group)", 1),
    (r"lora_rank", 16),
    (r"^(pad|bos|eos|decoder_start|sep|cls|mask|unk)_token_id", 3),
    (r"token_(id|index)", 100),
    (r"(max_position_embeddings|n_positions|max_\w*positions)", 128),
)  # fmt: skip


def tiny_model(model_type: str) -> PreTrainedModel:
    """A random model of the architecture, of the first of `AUTO_CLASSES` that has it. Raises whatever transformers raises for an
    architecture that cannot be made so small, ValueError where it has no such class or stays large."""
    config = shrunk(CONFIG_MAPPING[model_type]())
    model_class = _class_of(config)
    with torch.device("meta"), no_init_weights():
        numbers = sum(parameter.numel() for parameter in model_class(config).parameters())
    if numbers > MOST_NUMBERS:
        raise ValueError(f"{numbers / 1e6:.0f} million numbers even so")
    torch.manual_seed(0)
    return model_class(config).eval()


def shrunk(config: PretrainedConfig) -> PretrainedConfig:
    """`config` with its sizes, and those of its parts, as in `SMALL`; one layer of every kind where it lists their kinds."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            shrunk(value)
        elif name in ("layer_types", "layers_block_type", "mlp_layer_types") and isinstance(value, list) and value:
            kinds = list(dict.fromkeys(value))
            setattr(config, name, (kinds + kinds[-1:])[:2])
        elif isinstance(value, int) and not isinstance(value, bool) and not name.startswith(("_", "out_")):
            small = next((small for ending, small in SMALL if re.search(f"{ending}$", name)), value)
            if small < value or (small != value and "head" in name):
                setattr(config, name, small)
    return config


def _class_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    for auto in AUTO_CLASSES:
        try:
            found = getattr(transformers, auto)._model_mapping[type(config)]
        except (KeyError, ValueError):
            continue
        return found[0] if isinstance(found, list | tuple) else found
    raise ValueError("no class of a kind that is tried")
