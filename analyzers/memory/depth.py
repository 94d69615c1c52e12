"""The same model with fewer layers, and from two such models to the whole one.

Memory at any one moment of a step is affine in the number of equal layers. So two shallow recordings give every moment of the
deep one exactly; the highest of these moments is its peak, which need not be the highest moment of the shallow ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analyzers.memory.profile import Peak, Profile
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.roles import short_name, stack_of

if TYPE_CHECKING:
    from analyzers.methods import AdapterSpec

SHALLOW = 2  # fewest layers of a recording: a first and a last one
MAX_PERIOD = 8


@dataclass(frozen=True)
class Shallow:
    """Two depths whose recordings give the depth `full`."""

    low: int
    high: int
    full: int


def shallow(checkpoint: Checkpoint) -> Shallow | None:
    """The depths to record instead of the whole model; None when its layers do not repeat or are few."""
    config = _full_config(checkpoint)
    keys = depth_keys(config)
    depths = {int(config[key]) for key in keys if isinstance(config.get(key), int)}
    if len(depths) != 1:
        return None
    full = depths.pop()
    signatures = _signatures(checkpoint, config, full)
    if signatures is None:
        return None
    period = next(
        (p for p in range(1, MAX_PERIOD + 1) if all(a == b for a, b in zip(signatures, signatures[p:], strict=False))), None
    )
    if period is None:
        return None
    low = full % period
    while low < max(SHALLOW, period):
        low += period
    high = low + (2 if period == 1 else period)
    return Shallow(low, high, full) if high < full else None


def with_depth(checkpoint: Checkpoint, depth: int) -> Checkpoint:
    """`checkpoint`'s architecture with its first `depth` layers."""
    config = dict(_full_config(checkpoint))
    full = int(config[depth_keys(config)[0]])
    for key, value in config.items():
        if isinstance(value, list) and len(value) == full:
            config[key] = value[:depth]
    for key in depth_keys(config):
        config[key] = depth
    return Checkpoint(f"{checkpoint.name}, {depth} layers", config, checkpoint.weights)


def average_ranks(adapter: AdapterSpec | None) -> tuple[AdapterSpec | None, bool]:
    """`adapter` with the mean rank of each kind of module in every layer, and whether that changes anything.

    A rank plan makes layers differ; activations, A and B are linear in the rank, so their sum over layers is that of the means.
    """
    if adapter is None or not adapter.ranks:
        return adapter, False
    kinds: dict[str, list[int]] = {}
    for name, rank in adapter.ranks.items():
        kinds.setdefault(short_name(name), []).append(rank)
    if all(len(set(ranks)) == 1 for ranks in kinds.values()):
        return replace(adapter, ranks={kind: ranks[0] for kind, ranks in kinds.items()}, target_modules=list(kinds)), False
    means = {kind: max(1, round(sum(ranks) / len(ranks))) for kind, ranks in kinds.items()}
    return replace(adapter, ranks=means, target_modules=list(kinds)), True


def extrapolate(low: Profile, high: Profile, depths: Shallow) -> tuple[Peak, int]:
    """(peak, reserved bytes) of the full depth from profiles of two shallow recordings."""
    factor = (depths.full - depths.low) / (depths.high - depths.low)

    def affine(first: float, second: float) -> float:
        return first + (second - first) * factor

    best: Peak | None = None
    for key in low.stretches.keys() & high.stretches.keys():
        first, second = low.stretches[key], high.stretches[key]
        allocated = round(affine(first.allocated, second.allocated))
        if best is None or allocated > best.allocated:
            labels = [*first.parts, *(label for label in second.parts if label not in first.parts)]
            parts = {label: affine(first.parts.get(label, 0), second.parts.get(label, 0)) for label in labels}
            best = Peak(allocated, {label: size for label, size in parts.items() if size > 0})
    reserved = round(affine(low.reserved, high.reserved))
    return best, max(reserved, best.allocated)


def depth_keys(config: Mapping) -> list[str]:
    """The entries of a config.json that hold the number of layers: one, or two for an encoder and a decoder."""
    from transformers import CONFIG_MAPPING

    names = CONFIG_MAPPING[config["model_type"]].attribute_map
    keys = [names.get("num_hidden_layers", "num_hidden_layers")]
    if config.get("is_encoder_decoder"):
        keys += [key for key in ("num_decoder_layers", "decoder_layers", "encoder_layers") if key in config]
    return list(dict.fromkeys(key for key in keys if isinstance(config.get(key), int)))


def _full_config(checkpoint: Checkpoint) -> dict:
    """config.json with the defaults it leaves out."""
    from loraxs_core.architecture import model_config

    return {**model_config(checkpoint).to_dict(), **checkpoint.config}


def _signatures(checkpoint: Checkpoint, config: Mapping, depth: int) -> list[tuple] | None:
    """What each layer is like: shapes of its matrices, and its entries in the config's lists of layers."""
    stacks: dict[str, dict[int, list]] = {}
    for weight in checkpoint.weights:
        if weight.layer is not None and weight.is_adaptable:
            stack, _, number = stack_of(weight.name).rpartition(".")
            stacks.setdefault(stack, {}).setdefault(int(number), []).append((short_name(weight.name), weight.shape))
    if not stacks or any(sorted(layers) != list(range(depth)) for layers in stacks.values()):
        return None
    lists = [value for value in config.values() if isinstance(value, list) and len(value) == depth]
    return [
        (tuple(tuple(sorted(layers[index])) for layers in stacks.values()), tuple(str(entries[index]) for entries in lists))
        for index in range(depth)
    ]
