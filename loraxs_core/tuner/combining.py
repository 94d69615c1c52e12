"""Several adapters made into one: R is combined, because A and B are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from peft.utils.merge_utils import dare_linear, dare_ties, magnitude_prune, ties

from loraxs_core.errors import AdapterError
from loraxs_core.tuner.config import LoraXSConfig
from loraxs_core.tuner.given import is_given
from loraxs_core.tuner.layer import LoraXSLayer

EXACT = ("linear", "cat", "svd")  # PEFT's three ways to a weighted sum; here they are one, and exact
PRUNED = ("ties", "dare_linear", "dare_ties", "magnitude_prune")


def refuse_combination(
    known: Sequence[str], adapters: Sequence[str], weights: Sequence[float], new: str, kind: str, density: float | None
) -> None:
    """Raises AdapterError for adapters or a `kind` that there is none of."""
    if new in known:
        raise AdapterError(f"There is an adapter named {new!r} already; choose another name.")
    unknown = [name for name in adapters if name not in known]
    if unknown or not adapters or len(adapters) != len(weights):
        raise AdapterError(
            f"There is no adapter named {unknown[0]!r}; there are {', '.join(known)}."
            if unknown
            else "add_weighted_adapter needs as many weights as adapters, and at least one."
        )
    if kind not in (*EXACT, *PRUNED):
        raise AdapterError(f"combination_type must be one of {', '.join((*EXACT, *PRUNED))}, not {kind!r}.")
    if kind in PRUNED and density is None:
        raise AdapterError(f"combination_type={kind!r} needs density, the share of R's numbers to keep.")


def combined_config(layers: Mapping[str, LoraXSLayer], adapters: Sequence[str], first: LoraXSConfig) -> LoraXSConfig:
    """The configuration of the combination: the `first` one's, with every module that any of `adapters` adapts.

    Raises AdapterError when they differ in rank, vectors or sigma in some module, or have bases of their own.
    """
    for name, layer in layers.items():
        held = [adapter for adapter in adapters if adapter in layer.r]
        if len({(layer.basis_key[adapter], layer.r[adapter]) for adapter in held}) > 1:
            raise AdapterError(
                f"The adapters {', '.join(held)} do not share their bases in {name} (rank, vectors or sigma differ), so "
                "their sum is no LoRA-XS adapter; merge them one after the other instead."
            )
    config = deepcopy(first)
    # Bases that are not made from the weight here are taken over in `combine`; nothing has to be built for them.
    config.bases_follow = any(is_given(layer.basis_key[one]) for layer in layers.values() for one in adapters if one in layer.r)
    adapted = {name for name, layer in layers.items() if any(adapter in layer.r for adapter in adapters)}
    config.target_modules = adapted  # type: ignore[assignment]  # PEFT holds a set
    config.rank_pattern = {
        name: next(layer.r[adapter] for adapter in adapters if adapter in layer.r)
        for name, layer in layers.items()
        if name in adapted
    }
    return config


def combine(
    layer: LoraXSLayer,
    new: str,
    adapters: Sequence[str],
    weights: Sequence[float],
    kind: str,
    density: float | None,
    majority_sign_method: str,
) -> None:
    """Gives `new` the combination of the R of `adapters` that `layer` has."""
    held = [(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if adapter in layer.r]
    key = layer.basis_key[held[0][0]]
    if layer.basis_key[new] != key:
        layer.use_bases_of(new, key)
    target = layer.loraxs_R[new]
    scaled = [layer.scaling[adapter] * layer.loraxs_R[adapter].data.to(target.device, target.dtype) for adapter, _ in held]
    share = torch.tensor([weight for _, weight in held], dtype=target.dtype, device=target.device)
    if kind in EXACT:
        total = sum((weight * core for weight, core in zip(share, scaled, strict=True)), torch.zeros_like(target))
    elif kind == "ties":
        total = ties(scaled, share, density, majority_sign_method)
    elif kind == "dare_ties":
        total = dare_ties(scaled, share, density, majority_sign_method)
    else:
        total = {"dare_linear": dare_linear, "magnitude_prune": magnitude_prune}[kind](scaled, share, density)
    target.data = total.detach() / layer.scaling[new]
