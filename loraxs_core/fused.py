"""Fused projections taken apart: which rows of W0 are the queries, the keys, the values, the gate.

The layout is a convention of each architecture's code, not of the file, so it is known by model type; where it is not known
the matrix is analysed whole and never cut on a guess. All follow transformers 5 (models/*/modeling_*.py), and those that it
does not have (Baichuan, ChatGLM, InternLM2, the first Qwen) the code in their own repositories.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Query, key and value one below another, all of the same height.
_THIRDS = {
    "baichuan", "decision_transformer", "gpt2", "imagegpt", "modernbert", "mpt", "nomic_bert", "openai-gpt", "qwen",
}  # fmt: skip
# For each head in turn its query, key and value.
_PER_HEAD = {"bloom", "deberta", "gpt_neox", "gpt_neox_japanese", "persimmon"}
# Query heads, then the fewer key heads and value heads.
_GROUPED = {"dbrx", "phi3"}
# For each group of query heads its queries, its key and its value.
_PER_GROUP = {"internlm2"}
CODEGEN_BLOCKS = 4  # CodeGen's rows are those of as many accelerators, each with its queries, values and keys
# Gate above up.
_HALVES = {
    "glm", "glm4", "granitemoe", "granitemoehybrid", "granitemoeshared", "jetmoe", "llama4_text", "mixtral", "modernbert", "phi3",
    "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text",
}  # fmt: skip
# Gate and up in turn, row by row.
_ALTERNATING = {"gpt_oss"}

ROLES = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "gate": "mlp.gate",
    "up": "mlp.up",
}


def part_rows(role: str, name: str, height: int, config: Mapping) -> dict[str, np.ndarray]:
    """Part -> the rows of W0 (out x in) that belong to it; {} for a weight that is not fused or whose layout is unknown.

    role: of the whole weight. height: its number of rows. config: of the model (of its text part where there is one).
    """
    model_type = str(config.get("model_type") or "")
    if role == "attention.qkv":
        if model_type in ("gpt2", "gpt_bigcode") and ".crossattention." in name:  # whose queries come from q_attn
            return _cut(height, {"key": 1, "value": 1}, 2)
        if model_type in _THIRDS or name.endswith("in_proj_weight"):  # the latter is torch.nn.MultiheadAttention's
            return _cut(height, {"query": 1, "key": 1, "value": 1}, 3)
        return _query_key_value(model_type, height, config)
    if role == "mlp.gate_up":
        if model_type in _HALVES:
            return _cut(height, {"gate": 1, "up": 1}, 2)
        if model_type in _ALTERNATING:
            return {"gate": np.arange(0, height, 2), "up": np.arange(1, height, 2)}
    return {}


def _query_key_value(model_type: str, height: int, config: Mapping) -> dict[str, np.ndarray]:
    heads = _whole(config, "n_head", "num_attention_heads", "n_heads")  # BLOOM's configs hold the first two, and mean n_head
    if not heads:
        return {}
    if model_type in _PER_HEAD:
        return _per_group(height, heads, 1)
    if model_type in _GROUPED:
        inner = config.get("attn_config")  # DBRX's
        key_heads = _whole(config, "num_key_value_heads") or _whole(inner if isinstance(inner, Mapping) else {}, "kv_n_heads")
        return _grouped(height, heads, key_heads or heads)
    if model_type in _PER_GROUP:
        groups = _whole(config, "num_key_value_heads") or heads
        return _per_group(height, groups, heads // groups) if heads % groups == 0 else {}
    if model_type == "chatglm":
        groups = _whole(config, "multi_query_group_num") if config.get("multi_query_attention") else None
        return _grouped(height, heads, groups) if groups else _per_group(height, heads, 1)
    if model_type == "gpt_bigcode":
        return _grouped(height, heads, 1) if config.get("multi_query", True) else _per_group(height, heads, 1)
    if model_type == "codegen" and height % (3 * CODEGEN_BLOCKS) == 0:
        rows = np.arange(height).reshape(CODEGEN_BLOCKS, 3, -1)
        return {part: rows[:, index].ravel() for part, index in (("query", 0), ("key", 2), ("value", 1))}
    if model_type == "falcon":
        if config.get("new_decoder_architecture"):
            groups = _whole(config, "num_kv_heads") or heads
            return _per_group(height, groups, heads // groups) if heads % groups == 0 else {}
        if config.get("multi_query", True):
            return _grouped(height, heads, 1)
        return _per_group(height, heads, 1)
    return {}


def _grouped(height: int, heads: int, key_heads: int) -> dict[str, np.ndarray]:
    """All query heads, then all key heads, then all value heads."""
    return _cut(height, {"query": heads, "key": key_heads, "value": key_heads}, heads + 2 * key_heads)


def _cut(height: int, shares: dict[str, int], total: int) -> dict[str, np.ndarray]:
    """Parts one below another, each `share` of `total` high."""
    if height % total:
        return {}
    unit, start, rows = height // total, 0, {}
    for part, share in shares.items():
        rows[part] = np.arange(start, start + share * unit)
        start += share * unit
    return rows


def _per_group(height: int, groups: int, queries: int) -> dict[str, np.ndarray]:
    """For each group in turn: its query heads, its key head, its value head."""
    if height % (groups * (queries + 2)):
        return {}
    rows = np.arange(height).reshape(groups, queries + 2, -1)
    return {"query": rows[:, :queries].ravel(), "key": rows[:, queries].ravel(), "value": rows[:, queries + 1].ravel()}


def _whole(config: Mapping, *names: str) -> int | None:
    value = next((config[name] for name in names if config.get(name) is not None), None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
