"""Scaling what an adapter does, for a while, as PEFT's LoRA layers let people do."""

from __future__ import annotations

import math
from numbers import Real

from loraxs_core.errors import AdapterError


class ScaledLayer:
    """A layer with a scale for each adapter. scaling: in force. configured_scaling: what the configuration says, which alone is saved."""

    scaling: dict[str, float]
    configured_scaling: dict[str, float]
    active_adapters: list[str]

    def set_scale(self, adapter: str, scale: float) -> None:
        """Scales what an adapter does by `scale`, whatever its scale was. Nothing of it is saved."""
        _refuse_odd(scale)
        if adapter in self.scaling:
            self.scaling[adapter] = scale * self.configured_scaling[adapter]

    def scale_layer(self, scale: float) -> None:
        """Scales what the active adapters do by `scale`, on top of what their scale is."""
        _refuse_odd(scale)
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                self.scaling[adapter] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undoes `scale_layer(scale)`, or, without it, all scaling of the active adapters."""
        if scale is not None:
            _refuse_odd(scale, undone=True)
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                self.scaling[adapter] = self.configured_scaling[adapter] if scale is None else self.scaling[adapter] / scale


def _refuse_odd(scale: float, undone: bool = False) -> None:
    """Raises AdapterError for a scale that is no finite number, or, where it is to be `undone`, is 0."""
    if not isinstance(scale, Real) or not math.isfinite(scale):
        raise AdapterError(f"An adapter's scale must be a finite number, not {scale!r}.")
    if undone and scale == 0:
        raise AdapterError("A scale of 0 cannot be undone by itself; unscale_layer() without a number undoes all scaling.")
