"""PEFT's ``rank_pattern``: the fewest regular expressions that give every module its rank."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from loraxs_core.inventory import pattern_key


def rank_pattern(ranks: Mapping[str, int], default: int) -> dict[str, int]:
    r"""PEFT's ``rank_pattern`` that gives every module of `ranks` its rank, where modules it does not name get `default`.

    PEFT takes the first key that matches a module's path as the regular expression ``(.*\.)?(key)$``. Keys are escaped, lack the
    base model's prefix, so that they hold under any head, and stand for all layers at once (``\d+``) where those agree; single
    layers that differ come before them.

    >>> rank_pattern({"bert.encoder.layer.0.output.dense": 8, "bert.encoder.layer.1.output.dense": 8}, 4)
    {'encoder\\.layer\\.\\d+\\.output\\.dense': 8}
    """
    keys = {name: pattern_key(name) for name in ranks}
    if _ambiguous(keys.values()):  # stacks that differ only in front: whole names, the longer before those they end in
        return {re.escape(name): ranks[name] for name in sorted(ranks, key=len, reverse=True)}
    stacks: dict[str, list[str]] = {}
    for name, key in keys.items():
        stacks.setdefault(_any_layer(key), []).append(name)
    single: dict[str, int] = {}
    whole: dict[str, int] = {}
    for pattern, names in stacks.items():
        counts: dict[int, int] = {}
        for name in names:
            counts[ranks[name]] = counts.get(ranks[name], 0) + 1
        # A rule for the whole stack pays when it saves more single entries than the one it costs.
        usual = max(counts, key=lambda rank: (counts[rank], rank == default))
        if usual != default and counts[usual] > 1 + counts.get(default, 0):
            whole[pattern] = usual
        else:
            usual = default
        single |= {re.escape(keys[name]): ranks[name] for name in names if ranks[name] != usual}
    return single | whole


def _any_layer(key: str) -> str:
    """The escaped key with its first whole-number component, the depth, left open.

    >>> _any_layer("decoder.block.3.layer.1.EncDecAttention.q")
    'decoder\\\\.block\\\\.\\\\d+\\\\.layer\\\\.1\\\\.EncDecAttention\\\\.q'
    """
    return re.sub(r"(^|\\\.)\d+(?=\\\.|$)", r"\1\\d+", re.escape(key), count=1)


def _ambiguous(keys: Iterable[str]) -> bool:
    """Whether one key is also the end, at a dot, of another."""
    keys = list(keys)
    known = set(keys)
    if len(known) < len(keys):
        return True
    for key in keys:
        rest = key
        while "." in rest:
            rest = rest.partition(".")[2]
            if rest in known:
                return True
    return False
