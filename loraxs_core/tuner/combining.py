"""Several adapters made into one: R is combined, because A and B are the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from numbers import Real

import torch
import torch.nn.functional as F
from peft.utils.merge_utils import dare_linear, dare_ties, magnitude_prune, ties
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from loraxs_core.errors import AdapterError
from loraxs_core.tuner.config import LoraXSConfig
from loraxs_core.tuner.given import is_given
from loraxs_core.tuner.layer import LoraXSLayer

EXACT = ("linear", "cat", "svd")  # PEFT's three ways to a weighted sum; here they are one, and exact
PRUNED = ("ties", "dare_linear", "dare_ties", "magnitude_prune")


def refuse_combination(
    known: Mapping[str, LoraXSConfig],
    adapters: Sequence[str],
    weights: Sequence[float],
    new: str,
    kind: str,
    density: float | None,
    majority_sign_method: str,
    of_svd: Mapping[str, object],
) -> None:
    """Raises AdapterError for adapters or settings that there is no combination for. known: configurations by adapter name."""
    if new in known:
        raise AdapterError(f"There is an adapter named {new!r} already; choose another name.")
    refuse_unknown(known, adapters)
    if not adapters or len(adapters) != len(weights):
        raise AdapterError("add_weighted_adapter needs as many weights as adapters, and at least one.")
    for weight in weights:
        if not isinstance(weight, Real | torch.Tensor) or not math.isfinite(weight):
            raise AdapterError(f"add_weighted_adapter: a weight must be a finite number, not {weight!r}.")
    if kind not in (*EXACT, *PRUNED):
        raise AdapterError(f"combination_type must be one of {', '.join((*EXACT, *PRUNED))}, not {kind!r}.")
    if kind in PRUNED and density is None:
        raise AdapterError(f"combination_type={kind!r} needs density, the share of R's numbers to keep.")
    if density is not None and not (isinstance(density, Real) and 0 < density <= 1):
        raise AdapterError(f"density must be above 0 and at most 1, the share of R's numbers to keep, not {density!r}.")
    if majority_sign_method not in ("total", "frequency"):
        raise AdapterError(f"majority_sign_method must be total or frequency, not {majority_sign_method!r}.")
    if of_svd:
        raise AdapterError(
            f"{', '.join(of_svd)}: a sum of LoRA-XS adapters is exact at the rank that they share and needs no SVD; leave that out."
        )
    whole = [name for name in adapters if known[name].modules_to_save]
    if len(whole) > 1:
        raise AdapterError(
            f"{' and '.join(whole)} have modules that are trained whole (modules_to_save), and there is no sum of those; combine "
            "adapters of which one at most has any."
        )


def refuse_unknown(known: Iterable[str], adapters: Iterable[str]) -> None:
    """Raises AdapterError when one of `adapters` is not among `known`."""
    if unknown := [name for name in adapters if name not in known]:
        raise AdapterError(f"There is no adapter named {unknown[0]!r}; there are {', '.join(known)}.")


def combined_config(
    layers: Mapping[str, LoraXSLayer], adapters: Sequence[str], known: Mapping[str, LoraXSConfig]
) -> LoraXSConfig:
    """The configuration of the combination: the first one's, with every module that any of `adapters` adapts or trains whole, in the
    largest of their ranks there: the ``top`` bases of a smaller rank are the first vectors of those of a larger one.

    Raises AdapterError when they differ in vectors or sigma in some module, or in rank where that changes more than how many vectors
    there are, or have bases of their own.
    """
    for name, layer in layers.items():
        held = [adapter for adapter in adapters if adapter in layer.r]
        if len({layer.basis_key[adapter] for adapter in held}) > 1:
            raise AdapterError(
                f"The adapters {', '.join(held)} do not share their bases in {name} (vectors, sigma, or where they come from), so "
                "their sum is no LoRA-XS adapter; merge them one after the other instead."
            )
    config = deepcopy(known[adapters[0]])
    config.modules_to_save = next((known[name].modules_to_save for name in adapters if known[name].modules_to_save), None)
    # Bases that are not made from the weight here are taken over in `combine`; nothing has to be built for them.
    config.bases_follow = any(is_given(layer.basis_key[one]) for layer in layers.values() for one in adapters if one in layer.r)
    adapted = {name for name, layer in layers.items() if any(adapter in layer.r for adapter in adapters)}
    config.target_modules = adapted  # type: ignore[assignment]  # PEFT holds a set
    config.rank_pattern = {
        name: max(layer.r[adapter] for adapter in adapters if adapter in layer.r)
        for name, layer in layers.items()
        if name in adapted
    }
    return config


def copy_whole_modules(model: nn.Module, adapters: Sequence[str], new: str) -> None:
    """Gives `new` the modules that one of `adapters` trains whole, which PEFT made it from the base model's."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and new in module.modules_to_save:
            owner = next(name for name in adapters if name in module.modules_to_save)
            module.modules_to_save[new].load_state_dict(module.modules_to_save[owner].state_dict())


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
    scaled = []
    for adapter, _ in held:
        core, short = layer.loraxs_R[adapter].data.to(target.device, target.dtype), len(target) - layer.r[adapter]
        scaled.append(F.pad(layer.scaling[adapter] * core, (0, short, 0, short)))
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
