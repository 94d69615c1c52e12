"""Turns a Llama-family GGUF file into a plain folder: config.json, safetensors, tokenizer. Done once, kept in the cache.

The weights are written in fp32: exactly the numbers the quantised file stands for, not rounded a second time, and the precision
a CPU trains in. transformers can read GGUF itself, but takes a minute each time and refuses to save what it read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from loraxs_core.errors import CheckpointError
from loraxs_core.paths import atomic_folder
from loraxs_core.progress import Progress, ProgressCallback

# GGUF's tensor names (ggml-org/llama.cpp, gguf-py/gguf/constants.py) and transformers'.
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # GGUF's token type of <|im_start|> and its like


def convert(source: Path, target: Path, progress: ProgressCallback | None = None) -> None:
    """Writes the model in the GGUF file `source` to the new folder `target`, as AutoModelForCausalLM loads it.

    Raises CheckpointError when the file is not a readable GGUF of the Llama architecture with a byte-level BPE tokenizer.
    """
    from safetensors.numpy import save_file

    reader = _open(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama" or fields.get("tokenizer.ggml.model") != "gpt2":
        raise CheckpointError(f"{source.name} is not a Llama-architecture GGUF file with a byte-level BPE tokenizer.")
    heads, key_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    tensors = {}
    done, total = 0, sum(int(tensor.n_bytes) for tensor in reader.tensors)
    started = Progress(0, 1).started
    for tensor in reader.tensors:
        name, matrix = _transformers_name(tensor.name), _dequantised(tensor)
        if name.endswith("q_proj.weight"):
            matrix = _undo_rotary_order(matrix, heads)
        elif name.endswith("k_proj.weight"):
            matrix = _undo_rotary_order(matrix, key_heads)
        tensors[name] = matrix
        done += int(tensor.n_bytes)
        if progress:
            progress(Progress(done, total, f"dequantising {source.name}", started))
    with atomic_folder(target) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(_config(fields, tied="lm_head.weight" not in tensors), indent=2) + "\n")
        _tokenizer(fields).save_pretrained(folder)


def _open(source: Path):
    from gguf import GGUFReader

    try:
        return GGUFReader(source)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise CheckpointError(f"{source} is not a readable GGUF file; remove it and fetch the model again.") from error


def _transformers_name(name: str) -> str:
    if block := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        return f"model.layers.{block[1]}.{_INSIDE[block[2]]}.weight"
    return f"{_OUTSIDE[name.removesuffix('.weight')]}.weight"


def _dequantised(tensor) -> np.ndarray:
    from gguf.quants import dequantize

    shape = tuple(int(side) for side in reversed(tensor.shape))
    return np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type).reshape(shape), dtype=np.float32)


def _undo_rotary_order(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Query and key rows back in transformers' order: llama.cpp interleaves the two halves of each head for its rotary kernel."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(fields: dict, *, tied: bool) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "model_type": "llama",
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "vocab_size": fields["llama.vocab_size"],
    }


def _tokenizer(fields: dict):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    # What the GGUF calls the "smollm" pre-tokenizer: digits one by one, then GPT-2's byte level.
    digits = [pre_tokenizers.Digits(individual_digits=True)] if fields.get("tokenizer.ggml.pre") == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        model_max_length=fields["llama.context_length"],
        chat_template=fields.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )
