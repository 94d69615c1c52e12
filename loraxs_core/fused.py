"""Fused projections taken apart: which rows of W0 are the queries, the keys, the values, the gate.

The layout is a convention of each architecture's code, not of the file, so it is known by model type; where it is not known
the matrix is analysed whole and never cut on a guess. All follow transformers 5 (models/*/modeling_*.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Query, key and value one below another, all of the same height.
_THIRDS = {"decision_transformer", "gpt2", "imagegpt", "modernbert", "openai-gpt"}
# For each head in turn its query, key and value.
_PER_HEAD = {"bloom", "deberta", "gpt_neox", "gpt_neox_japanese"}
# Query heads, then the fewer key heads and value heads.
_GROUPED = {"phi3"}
# Gate above up.
_HALVES = {"modernbert", "phi3"}
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
    heads = _whole(config, "n_head", "num_attention_heads")  # BLOOM's configs hold both, and mean the first
    if not heads:
        return {}
    if model_type in _PER_HEAD:
        return _per_group(height, heads, 1)
    if model_type in _GROUPED:
        key_heads = _whole(config, "num_key_value_heads") or heads
        return _cut(height, {"query": heads, "key": key_heads, "value": key_heads}, heads + 2 * key_heads)
    if model_type == "falcon":
        if config.get("new_decoder_architecture"):
            groups = _whole(config, "num_kv_heads") or heads
            return _per_group(height, groups, heads // groups) if heads % groups == 0 else {}
        if config.get("multi_query", True):
            return _cut(height, {"query": heads, "key": 1, "value": 1}, heads + 2)
        return _per_group(height, heads, 1)
    return {}


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
