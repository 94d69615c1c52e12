"""Where the adapters of a model are: a second adapter with the targets of another goes straight into the same layers.

PEFT looks through the whole model for every adapter, several times, and through all parameters of all adapters that are there: 45 ms
for the first one on MiniLM and 660 for the 240th. What an adapter's configuration says about modules decides which layers it gets, so
it is enough to look once for every such saying.
"""

from __future__ import annotations

from collections.abc import Hashable
from copy import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraxs_core.tuner.config import LoraXSConfig
    from loraxs_core.tuner.layer import LoraXSLayer

_FIELDS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern")


def where_to_look(config: LoraXSConfig) -> Hashable | None:
    """All that `config` says about which modules get the adapter; None where modules are saved whole, which PEFT has to wrap."""
    return None if config.modules_to_save else tuple(_frozen(getattr(config, field)) for field in _FIELDS)


class Placed:
    """The layers that PEFT found for a configuration, and what it then made of its targets. layers: in the model's order."""

    def __init__(self, layers: list[LoraXSLayer], config: LoraXSConfig):
        self.layers = layers
        self._targets, self._fan_in_fan_out = copy(config.target_modules), config.fan_in_fan_out

    def add(self, adapter_name: str, config: LoraXSConfig, *, active: bool) -> list[LoraXSLayer]:
        """Gives all layers an adapter with a configuration that looks in the same places. Raises AdapterError as `update_layer` does,
        and leaves no layer changed then."""
        config.target_modules, config.fan_in_fan_out = copy(self._targets), self._fan_in_fan_out
        done = []
        try:
            for layer in self.layers:
                layer.update_layer(adapter_name, config=config, inference_mode=config.inference_mode or not active)
                done.append(layer)
        except BaseException:
            for layer in done:
                layer.delete_adapter(adapter_name)
            raise
        return self.layers


def _frozen(value: object) -> Hashable:
    if isinstance(value, dict):
        return tuple((key, _frozen(one)) for key, one in value.items())
    if isinstance(value, set | list | tuple):
        return frozenset(value) if isinstance(value, set) else tuple(value)
    return value  # type: ignore[return-value]
