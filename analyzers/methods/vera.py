"""VeRA: random A and B shared by all modules, two trained vectors a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyzers.methods.method import BENCHMARK, OUR_DEFAULT, AdapterSpec, Method, Rate, common
from analyzers.methods.saved import PREFIX, Module, Saved, Tensor

if TYPE_CHECKING:
    from peft import PeftConfig


def config(spec: AdapterSpec) -> PeftConfig:
    from peft import VeraConfig

    return VeraConfig(
        r=spec.rank, vera_dropout=spec.dropout, projection_prng_key=spec.seed, **{"save_projection": True, **common(spec)}
    )


def written(spec: AdapterSpec, modules: Sequence[Module], dtype: str) -> Saved:
    """Two vectors a module; with ``save_projection`` (PEFT's default) also the shared A (r x widest in) and B (widest out x r)."""
    tensors = {}
    for module in modules:
        tensors[f"{PREFIX}{module.path}.vera_lambda_b"] = Tensor((module.out,), module.dtype(dtype))
        tensors[f"{PREFIX}{module.path}.vera_lambda_d"] = Tensor((spec.rank,), module.dtype(dtype))
    trained = tuple(tensors.values())
    shared = modules[-1].dtype(dtype)  # PEFT moves them to the precision of each module in turn
    projections = {
        "base_model.vera_A": Tensor((spec.rank, max(module.inner for module in modules)), shared),
        "base_model.vera_B": Tensor((max(module.out for module in modules), spec.rank), shared),
    }
    if spec.options.get("save_projection", True):
        tensors |= projections
    return Saved(tensors, trained, sum(tensor.numbers for tensor in projections.values()))


METHODS = (
    Method(
        "vera",
        "VeRA",
        "Shared random A and B, two trained vectors a module.",
        "arXiv 2310.11454",
        4e-2,
        rate_source=BENCHMARK,
        causal=Rate(4e-3, OUR_DEFAULT),
        peft_type="VERA",
        default_rank=256,
        config=config,
        written=written,
        written_options=frozenset({"save_projection"}),
        kept=lambda module, trained_bytes, dropout: 4 * (module.out + module.rank),
    ),
)
