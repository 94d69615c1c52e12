"""The same model with fewer layers, from whose recording that of the whole model follows (`analyzers.memory.repeat_layers`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from analyzers.memory.repeat_layers import Repetition
from loraxs_core.architecture import as_loaded, model_config
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.roles import short_name, stack_of

if TYPE_CHECKING:
    from analyzers.methods import AdapterSpec

MAX_PERIOD = 8


def repetition(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Repetition | None:
    """How few layers to record, and which of them to repeat; None when the layers do not repeat or are few anyway.

    The first layer is not like the others (its input needs no gradient) and the last need not be; between them one regular
    period is recorded as it is and the next one repeated, so that what crosses from one to the next is recorded too.
    """
    config, keys = _full_config(checkpoint, trust_remote_code)
    depths = {int(config[key]) for key in keys}
    if len(depths) != 1:
        return None
    full = depths.pop()
    signatures = _signatures(checkpoint, config, full)
    if signatures is None:
        return None
    for period in range(1, MAX_PERIOD + 1):
        if all(one == other for one, other in zip(signatures, signatures[period:], strict=False)):
            depth = 2 + 2 * period
            depth += (full - depth) % period
            return Repetition(1 + period, period, (full - depth) // period + 1, depth) if depth < full else None
    return None


def with_depth(checkpoint: Checkpoint, depth: int, *, trust_remote_code: bool = False) -> Checkpoint:
    """`checkpoint`'s architecture with its first `depth` layers."""
    config, keys = _full_config(checkpoint, trust_remote_code)
    full = int(config[keys[0]])
    for key, value in config.items():
        if isinstance(value, list) and len(value) == full:
            config[key] = value[:depth]
    for key in keys:
        config[key] = depth
    return Checkpoint(checkpoint.name, config, checkpoint.weights, folder=checkpoint.folder)


def average_ranks(adapter: AdapterSpec | Mapping | None) -> tuple[AdapterSpec | Mapping | None, bool]:
    """`adapter` with the mean rank of each kind of module in every layer, and whether that changes anything.

    A rank plan makes layers differ; activations, A and B are linear in the rank, so their sum over layers is that of the means.
    """
    if adapter is None or isinstance(adapter, Mapping) or not adapter.ranks:
        return adapter, False
    kinds: dict[str, list[int]] = {}
    for name, rank in adapter.ranks.items():
        kinds.setdefault(short_name(name), []).append(rank)
    if all(len(set(ranks)) == 1 for ranks in kinds.values()):
        return replace(adapter, ranks={kind: ranks[0] for kind, ranks in kinds.items()}, target_modules=list(kinds)), False
    means = {kind: max(1, round(sum(ranks) / len(ranks))) for kind, ranks in kinds.items()}
    return replace(adapter, ranks=means, target_modules=list(kinds)), True


def depth_keys(config: Mapping, names: Mapping[str, str]) -> list[str]:
    """The entries of a config.json that hold the number of layers: one, or two for an encoder and a decoder.

    names: transformers' name of a value -> what this architecture calls it (its ``attribute_map``).
    """
    keys = [names.get("num_hidden_layers", "num_hidden_layers")]
    if config.get("is_encoder_decoder"):
        keys += [key for key in ("num_decoder_layers", "decoder_layers", "encoder_layers") if key in config]
    return list(dict.fromkeys(key for key in keys if isinstance(config.get(key), int)))


def _full_config(checkpoint: Checkpoint, trust_remote_code: bool) -> tuple[dict, list[str]]:
    """config.json with the defaults it leaves out, and its `depth_keys`."""
    known = model_config(checkpoint, trust_remote_code=trust_remote_code)
    config = {**known.to_dict(), **checkpoint.config}
    return config, depth_keys(config, known.attribute_map)


def _signatures(checkpoint: Checkpoint, config: Mapping, depth: int) -> list[tuple] | None:
    """What each layer is like: shapes of its matrices, and its entries in the config's lists of layers."""
    stacks: dict[str, dict[int, list]] = {}
    for weight in as_loaded(checkpoint).weights:
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
