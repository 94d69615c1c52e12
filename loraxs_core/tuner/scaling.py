"""Scaling what an adapter does, for a while, as PEFT's LoRA layers let people do."""

from __future__ import annotations


class ScaledLayer:
    """A layer with a scale for each adapter. scaling: in force. configured_scaling: what the configuration says, which alone is saved."""

    scaling: dict[str, float]
    configured_scaling: dict[str, float]
    active_adapters: list[str]

    def set_scale(self, adapter: str, scale: float) -> None:
        """Scales what an adapter does by `scale`, whatever its scale was. Nothing of it is saved."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale * self.configured_scaling[adapter]

    def scale_layer(self, scale: float) -> None:
        """Scales what the active adapters do by `scale`, on top of what their scale is."""
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                self.scaling[adapter] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undoes `scale_layer(scale)`, or, without it, all scaling of the active adapters."""
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                self.scaling[adapter] = self.configured_scaling[adapter] if scale is None else self.scaling[adapter] / scale
