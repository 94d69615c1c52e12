"""PSOFT: a trained orthogonal r x r rotation, with magnitudes, between frozen factors of the SVD."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyzers.methods.method import PEFT_BENCHMARK, AdapterSpec, Method, Rate, common, kept_as_lora_xs
from analyzers.methods.saved import PREFIX, Module, Saved, Tensor
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    from peft import PeftConfig


def config(spec: AdapterSpec) -> PeftConfig:
    from peft import PsoftConfig

    return PsoftConfig(r=spec.rank, psoft_alpha=spec.alpha(spec.rank), psoft_dropout=spec.dropout, **common(spec))


def written(spec: AdapterSpec, modules: Sequence[Module], dtype: str) -> Saved:
    """The r (r - 1) / 2 free numbers of a rotation (r x r without ``psoft_orth``) and two vectors of magnitudes; A and B are
    rebuilt from the base. Raises SettingsError for GPT-2's Conv1D, which PEFT's PSOFT does not know."""
    for module in modules:
        if module.conv1d:
            raise SettingsError(f"PEFT cannot lay out psoft on {module.path}: it is a Conv1D, and psoft takes nn.Linear only.")
    orthogonal, *magnitudes = (spec.options.get(f"psoft_{name}", True) for name in ("orth", "mag_a", "mag_b"))
    tensors = {}
    for module in modules:
        rank, own = module.rank, module.dtype(dtype)
        rotation = (rank * (rank - 1) // 2,) if orthogonal else (rank, rank)
        tensors[f"{PREFIX}{module.path}.psoft_R.weight"] = Tensor(rotation, own)
        for name in itertools.compress(("vector_a", "vector_b"), magnitudes):
            tensors[f"{PREFIX}{module.path}.psoft_R.{name}"] = Tensor((rank,), own)
    return Saved(tensors, tuple(tensors.values()), sum(module.rank * (module.inner + module.out) for module in modules))


METHODS = (
    Method(
        "psoft",
        "PSOFT",
        "An orthogonal r x r rotation between SVD factors.",
        "PEFT 0.21",
        1e-3,
        causal=Rate(1e-4, PEFT_BENCHMARK),
        peft_type="PSOFT",
        config=config,
        written=written,
        written_options=frozenset({"psoft_orth", "psoft_mag_a", "psoft_mag_b", "psoft_svd", "ab_svd_init", "random_seed"}),
        rank_within_matrix=True,
        starts_from_svd=True,
        kept=kept_as_lora_xs,
    ),
)
