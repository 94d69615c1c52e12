"""LoRA-SB: LoRA-XS whose A and B come from the first update that a full fine-tune would make, and are saved with R."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyzers.methods import lora_xs
from analyzers.methods.method import AdapterSpec, FirstBatches, Method, Rate, kept_as_lora_xs
from analyzers.methods.saved import Module, Saved

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def _with_bases(spec: AdapterSpec) -> AdapterSpec:
    return dataclasses.replace(spec, options={**spec.options, "save_bases": True})


def config(spec: AdapterSpec) -> PeftConfig:
    return lora_xs.config(_with_bases(spec))


def written(spec: AdapterSpec, modules: Sequence[Module], dtype: str) -> Saved:
    """As LoRA-XS, and A and B beside each R."""
    return lora_xs.written(_with_bases(spec), modules, dtype)


def start(model: PeftModel, first: FirstBatches) -> None:
    from loraxs_core.tuner.gradient_start import start_from_gradients

    start_from_gradients(model, first.losses, first.rate)


METHODS = (
    Method(
        "lora-sb",
        "LoRA-SB",
        "LoRA-XS with A and B from the first update of a full fine-tune; both are saved.",
        "arXiv 2411.19557",
        1e-3,
        rate_source="the authors' code, GLUE at r = 24",
        causal=Rate(1e-4, "the authors' code, MetaMathQA at r = 96"),
        peft_type="LORAXS",
        per_layer_ranks=True,
        default_rank=16,
        config=config,
        written=written,
        written_options=frozenset({"init_std", "seed", "save_dtype"}),
        rank_within_matrix=True,
        starts_from_svd=True,
        starts_from_data=start,
        kept=kept_as_lora_xs,
    ),
)
