"""LoRA-XS: A and B frozen from the SVD of the weight, R (r x r) trained. The tuner itself is `loraxs_core.tuner`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyzers.methods.method import BENCHMARK, AdapterSpec, Method, Rate, common, kept_as_lora_xs
from analyzers.methods.saved import Module, Saved, Tensor

if TYPE_CHECKING:
    from peft import PeftConfig


def config(spec: AdapterSpec) -> PeftConfig:
    from loraxs_core.tuner import LoraXSConfig

    return LoraXSConfig(
        r=spec.rank, alpha=spec.alpha(spec.rank), dropout=spec.dropout, rank_pattern=dict(spec.ranks), **common(spec)
    )


def written(spec: AdapterSpec, modules: Sequence[Module], dtype: str) -> Saved:
    """R (r x r) a module, trained in float32 however it is saved, and the tuner's proof of the bases; where A and B are saved, they are in
    the precision of the base, which is taken to be loaded in `dtype`."""
    from loraxs_core.tuner import saved_tensors

    shapes = {module.path: (module.out, module.inner, module.rank) for module in modules}
    adapter = config(dataclasses.replace(spec, options={**spec.options, "save_dtype": dtype}))
    loaded = {module.path: "float32" if module.fp32 else dtype for module in modules}
    tensors = {key: Tensor(tuple(shape), stored) for key, (shape, stored) in saved_tensors(shapes, adapter, loaded).items()}
    frozen = sum(module.rank * (module.inner + module.out) for module in modules)
    return Saved(tensors, tuple(Tensor((module.rank, module.rank)) for module in modules), frozen)


METHODS = (
    Method(
        "lora-xs",
        "LoRA-XS",
        "A and B frozen from the SVD of the weight; only the r x r matrix R is trained.",
        "arXiv 2405.17604",
        1e-2,
        rate_source=f"{BENCHMARK}; kept at batch 16 too, where validation does not tell it from 0.004 at ranks 4 to 32",
        causal=Rate(4e-3, "the authors' code, MetaMathQA at r = 64"),
        peft_type="LORAXS",
        per_layer_ranks=True,
        default_rank=16,
        config=config,
        written=written,
        written_for_embeddings=True,
        written_options=frozenset({"vectors", "sigma", "init_std", "seed", "save_dtype"}),
        rank_within_matrix=True,
        starts_from_svd=True,
        kept=kept_as_lora_xs,
    ),
)
