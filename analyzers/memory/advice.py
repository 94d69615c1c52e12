"""What decides the memory of a fine-tune, in sentences with figures; each figure is an estimate of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyzers.memory.estimate import GIB, MemoryEstimate, estimate_memory
from analyzers.memory.parts import PARTS
from analyzers.memory.settings import MemorySettings
from analyzers.methods import METHODS

if TYPE_CHECKING:
    from loraxs_core.checkpoint import Checkpoint

NAMES = {"loss_head": "the loss head", "weights": "the base weights", "optimizer": "the optimizer's states"}
SLOWER = (
    30  # per cent: the layers' forward pass a second time, a third of a step's forward and backward; less with frozen bases
)
WORTH_SAYING = 0.05  # savings below this share of the peak are "almost nothing"


def what_decides(checkpoint: Checkpoint, settings: MemorySettings, estimate: MemoryEstimate | None = None) -> list[str]:
    """Sentences: the largest parts, what gradient checkpointing would save, and LoRA-XS against LoRA with and without it."""
    estimate = estimate or estimate_memory(checkpoint, settings)
    ordered = sorted(PARTS, key=lambda part: -estimate.breakdown[part])[:2]
    shares = " and ".join(
        f"{NAMES.get(part, part)} {estimate.breakdown[part] / estimate.peak_allocated:.0%}" for part in ordered
    )
    sentences = [f"At the peak, {shares} of {estimate.peak_allocated / GIB:.1f} GiB."]
    other = settings.but(gradient_checkpointing=not settings.gradient_checkpointing)
    toggled = estimate_memory(checkpoint, other)
    saved = estimate.peak_reserved - toggled.peak_reserved
    if settings.gradient_checkpointing:
        sentences.append(f"Gradient checkpointing saves {_gib(-saved)} here at up to {SLOWER} % more time.")
    else:
        sentences.append(f"Gradient checkpointing would save {_gib(saved)} at up to {SLOWER} % more time.")
    rival = {"lora-xs": "lora", "lora": "lora-xs"}.get(settings.method)
    if rival:
        sentences.append(_against(checkpoint, settings, estimate, other, toggled, rival))
    return sentences


def _against(
    checkpoint: Checkpoint,
    settings: MemorySettings,
    here: MemoryEstimate,
    other: MemorySettings,
    there: MemoryEstimate,
    rival: str,
) -> str:
    """LoRA-XS against LoRA, as the settings are and with checkpointing the other way."""
    sign = 1 if settings.method == "lora-xs" else -1
    now = sign * (estimate_memory(checkpoint, settings.but(method=rival)).peak_reserved - here.peak_reserved)
    then = sign * (estimate_memory(checkpoint, other.but(method=rival)).peak_reserved - there.peak_reserved)
    phrase = "without" if settings.gradient_checkpointing else "with"
    return (
        f"Against {METHODS['lora'].label} LoRA-XS saves {_gib(now, here)} here, "
        f"{_gib(then, there)} {phrase} checkpointing: it need not keep the adapters' inputs for the backward pass."
    )


def _gib(size: float, of: MemoryEstimate | None = None) -> str:
    if of is not None and abs(size) < WORTH_SAYING * of.peak_reserved:
        return f"almost nothing ({size / GIB:.1f} GiB)"
    return f"{size / GIB:.1f} GiB" if abs(size) >= 0.1 * GIB else f"{size / 2**20:.0f} MiB"
