"""PEFT's helpers that know LoRA alone, taught LoRA-XS: changing an adapter's scale for a while, and swapping its numbers in place."""

from __future__ import annotations

import functools
from abc import ABC
from typing import Any

import peft.helpers
from peft import set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import PeftType, hotswap

from loraxs_core.errors import AdapterError
from loraxs_core.tuner.layer import LoraXSLayer

# What must agree for one adapter's numbers to take another's place; the targets are in the numbers' names.
_SWAPPABLE = ["r", "alpha", "rank_pattern", "alpha_pattern", "vectors", "sigma", "seed", "dropout"]


class _Scaled(ABC):  # noqa: B024  (a name for several classes that PEFT's helper may ask `isinstance` about)
    """Layers with a scale for each adapter, in ``scaling``."""


_Scaled.register(LoraLayer)
_Scaled.register(LoraXSLayer)


def install() -> None:
    """Makes ``peft.helpers.rescale_adapter_scale`` and ``peft.utils.hotswap.hotswap_adapter`` work; harmless when repeated."""
    peft.helpers.LoraLayer = _Scaled  # type: ignore[misc, assignment]
    hotswap.CONFIG_KEYS_TO_CHECK[PeftType.LORAXS] = _SWAPPABLE
    plain = getattr(hotswap.hotswap_adapter_from_state_dict, "loraxs_plain", hotswap.hotswap_adapter_from_state_dict)

    @functools.wraps(plain)
    def swap(model: Any, state_dict: dict, adapter_name: str, config: Any, *args: Any, **kwargs: Any) -> None:
        if config.peft_type != PeftType.LORAXS:
            plain(model, state_dict, adapter_name, config, *args, **kwargs)
            return
        if any(adapter_name in one.merged_adapters for one in model.modules() if isinstance(one, LoraXSLayer)):
            raise ValueError(f"Cannot hot-swap adapter '{adapter_name}' while it is merged; unmerge it first.")
        saved = {key.removesuffix(f".{adapter_name}"): tensor for key, tensor in state_dict.items()}
        set_peft_model_state_dict(model, saved, adapter_name)

    swap.loraxs_plain = plain  # type: ignore[attr-defined]
    pads = getattr(hotswap.prepare_model_for_compiled_hotswap, "loraxs_plain", hotswap.prepare_model_for_compiled_hotswap)

    @functools.wraps(pads)
    def prepare(model: Any, *args: Any, **kwargs: Any) -> None:
        if any(isinstance(one, LoraXSLayer) for one in model.modules()):
            raise AdapterError(
                "prepare_model_for_compiled_hotswap makes room for LoRA's other ranks; a LoRA-XS adapter takes the place of one of the "
                "same rank and scaling, which needs no preparation, so leave it out."
            )
        pads(model, *args, **kwargs)

    prepare.loraxs_plain = pads  # type: ignore[attr-defined]
    hotswap.prepare_model_for_compiled_hotswap = prepare
    hotswap.hotswap_adapter_from_state_dict = swap
