"""A rank plan in the words of others: PEFT's patterns and configurations, CSV, a Python program."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from loraxs_core.errors import PlanError
from loraxs_core.inventory import pattern_key

if TYPE_CHECKING:
    from analyzers.methods import AdapterSpec
    from analyzers.ranks.plan import RankPlan

KINDS = ("lora-xs", "lora", "json", "csv", "python")


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


def spec(plan: RankPlan, method: str, **changes) -> AdapterSpec:
    """`plan` as an adapter of `method`; methods without ranks of their own per layer get the most frequent one.

    Raises SettingsError for an unknown method.
    """
    from analyzers.methods import AdapterSpec
    from analyzers.methods import method as find

    per_layer = find(method).per_layer_ranks
    return AdapterSpec(
        **{
            "method": method,
            "target_modules": tuple(plan.targets),
            "rank": plan.most_frequent_rank,
            "ranks": plan.rank_pattern if per_layer else {},
            "alpha_over_r": plan.alpha_over_r,
            **changes,
        }
    )


def text(plan: RankPlan, kind: str) -> str:
    """See `RankPlan.export`."""
    match kind:
        case "json":
            return json.dumps(plan.to_dict(), indent=2, ensure_ascii=False)
        case "csv":
            return plan.frame().to_csv(index=False).rstrip("\n")
        case "python":
            return plan.snippet()
        case "lora-xs" | "lora":
            config = plan.lora_xs_config() if kind == "lora-xs" else plan.lora_config()
            values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
            return json.dumps(values, indent=2, sort_keys=True, default=str)
    raise PlanError(f"Unknown export {kind!r}; there are {', '.join(KINDS)}.")


def snippet(plan: RankPlan) -> str:
    """A program that loads the model by whatever the user called it, and adapts it by this plan."""
    pattern = "".join(f"        {key!r}: {rank},\n" for key, rank in plan.rank_pattern.items())
    return f'''"""LoRA-XS on {plan.model}: {plan.trainable:,} trained numbers in {len(plan.ranks)} layers ({plan.strategy} ranks)."""

from peft import get_peft_model
from transformers import AutoModel  # or the class of your task, such as AutoModelForSequenceClassification

from loraxs_core.tuner import LoraXSConfig
from sample_models import open_model

model = AutoModel.from_pretrained(open_model({plan.model!r}).folder)
config = LoraXSConfig(
    r={plan.most_frequent_rank},
    alpha={plan.alpha_over_r * plan.most_frequent_rank!r},
    target_modules={list(plan.targets)!r},
    rank_pattern={{{chr(10) + pattern + "    " if pattern else ""}}},
)
model = get_peft_model(model, config)
model.print_trainable_parameters()
'''


def _any_layer(key: str) -> str:
    """The escaped key with its first whole-number component, the depth, left open.

    >>> _any_layer("decoder.block.3.layer.1.EncDecAttention.q")
    'decoder\\\\.block\\\\.\\\\d+\\\\.layer\\\\.1\\\\.EncDecAttention\\\\.q'
    """
    return re.sub(r"(^|\\\.)\d+(?=\\\.|$)", r"\1\\d+", re.escape(key), count=1)


def _ambiguous(keys) -> bool:
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
