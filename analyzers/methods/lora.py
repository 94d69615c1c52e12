"""LoRA: A (r x in) and B (out x r), both trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyzers.methods.method import BENCHMARK, AdapterSpec, Method, Rate, common
from analyzers.methods.saved import PREFIX, Module, Saved, Tensor

if TYPE_CHECKING:
    from peft import PeftConfig


def config(spec: AdapterSpec, **extra: Any) -> PeftConfig:
    from peft import LoraConfig

    # PEFT keeps alpha when rank_pattern changes the rank; alpha_pattern keeps alpha / r equal instead.
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha(spec.rank),
        lora_dropout=spec.dropout,
        rank_pattern=dict(spec.ranks),
        alpha_pattern={name: spec.alpha(rank) for name, rank in spec.ranks.items()},
        **extra,
        **common(spec),
    )


def written(spec: AdapterSpec, modules: Sequence[Module], dtype: str) -> Saved:
    tensors = {}
    for module in modules:
        own = module.dtype(dtype)
        if module.kind == "embedding":
            tensors[f"{PREFIX}{module.path}.lora_embedding_A"] = Tensor((module.rank, module.out), own)
            tensors[f"{PREFIX}{module.path}.lora_embedding_B"] = Tensor((module.inner, module.rank), own)
            continue
        tensors[f"{PREFIX}{module.path}.lora_A.weight"] = Tensor((module.rank, module.inner), own)
        tensors[f"{PREFIX}{module.path}.lora_B.weight"] = Tensor((module.out, module.rank), own)
    return Saved(tensors, tuple(tensors.values()))


METHODS = (
    Method(
        "lora",
        "LoRA",
        "Trained A and B of rank r.",
        "arXiv 2106.09685",
        2e-3,
        2.0,
        rate_source=BENCHMARK,
        causal=Rate(2e-4, "QLoRA's scripts, 7B at r = 64"),
        peft_type="LORA",
        per_layer_ranks=True,
        config=config,
        written=written,
        written_for_embeddings=True,
        lora_family=True,
        copies_output=True,
    ),
)
