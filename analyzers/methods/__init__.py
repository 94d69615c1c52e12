"""The fine-tuning methods the workbench compares: what PEFT calls them, what they need, where their defaults come from.

One registry for sizes, memory and trials alike. Adding a method is adding a file here with `METHODS` in it: a `Method`, and the
function that makes PEFT's own configuration (ours for LoRA-XS), built only when asked for, so that importing this stays cheap.

    AdapterSpec  ->  peft_config (trials, traced memory)  |  Method.written (sizes)  |  Method.kept (closed form of memory)

>>> peft_config(AdapterSpec("lora-xs", ["query"], rank=8)).alpha
8.0
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyzers.methods.method import AdapterSpec, Method
from loraxs_core.errors import SettingsError
from loraxs_core.registry import found

if TYPE_CHECKING:
    from peft import PeftConfig

METHODS: dict[str, Method] = found(
    __name__, "METHODS", first=("no_adapter", "lora_xs", "lora", "vera", "lora_variants", "ia3", "tinylora")
)

# What the product is about; the page and the demo compare these unless told otherwise.
MAIN_METHODS = ("lora", "vera", "lora-xs")


def method(name: str) -> Method:
    """The method called `name`. Raises SettingsError listing those there are."""
    try:
        return METHODS[name]
    except KeyError:
        raise SettingsError(f"Unknown method {name!r}; there are {', '.join(METHODS)}.") from None


def adapter_config(spec: AdapterSpec) -> PeftConfig:
    """PEFT's configuration of `spec`. Raises SettingsError for an unknown method, and for one that adds no adapter."""
    chosen = method(spec.method)
    if chosen.config is None:
        raise SettingsError(f"{chosen.label} adds no adapter, so PEFT has no configuration of it.")
    return chosen.config(chosen.complete(spec))


def peft_config(spec: AdapterSpec) -> PeftConfig | None:
    """PEFT's configuration of `spec`; None for methods that add no adapter. Raises SettingsError for an unknown method."""
    return adapter_config(spec) if method(spec.method).config else None


__all__ = ["MAIN_METHODS", "METHODS", "AdapterSpec", "Method", "adapter_config", "method", "peft_config"]
