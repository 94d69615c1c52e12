"""What makes a training step smaller: changes of its settings that people make first when it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analyzers.memory.advice import SLOWER
from analyzers.memory.answer import MemoryEstimate
from analyzers.memory.settings import TASKS, MemorySettings, default_task

if TYPE_CHECKING:
    from loraxs_core.checkpoint import Checkpoint

WORTH = 0.02  # of the peak: what saves less is no remedy


@dataclass(frozen=True)
class Remedy:
    """changes: of `MemorySettings`. price: what one pays for it, in words."""

    label: str
    price: str
    changes: Mapping[str, object]


def remedies(checkpoint: Checkpoint, settings: MemorySettings) -> list[Remedy]:
    """Those that are not taken yet, the gentlest first. Whether one helps, and whether it can be had at all, an estimate says."""
    found = []
    causal = (TASKS[settings.task] if settings.task else default_task(checkpoint)) == "CAUSAL_LM"
    if not settings.quantize and _base_dtype(checkpoint, settings) == "fp32":
        found.append(Remedy("bf16 weights", "Frozen weights in 16 bits instead of 32.", {"base_dtype": "bf16"}))
    if causal and settings.loss == "transformers":
        found.append(Remedy("fused loss", "Liger's, which never holds all logits: a package more.", {"loss": "liger"}))
    if not settings.gradient_checkpointing:
        price = f"Activations are computed again in the backward pass: up to {SLOWER} % more time."
        found.append(Remedy("checkpointing", price, {"gradient_checkpointing": True}))
    if settings.batch > 1:
        micro = settings.batch * settings.gradient_accumulation
        price = f"One sequence at a time, {micro} of them a step: the same gradient, less parallel work."
        found.append(Remedy(f"batch 1 x {micro}", price, {"batch": 1, "gradient_accumulation": micro}))
    if settings.method == "full" and "8bit" not in settings.optimizer:
        found.append(Remedy("8-bit optimizer", "Its states in 8 bits.", {"optimizer": "adamw-8bit"}))
    if not settings.quantize and settings.method != "full":
        found.append(Remedy("4-bit base", "NF4: some accuracy, and time for unpacking.", {"quantize": "4bit"}))
    return found


def gain(before: MemoryEstimate, after: MemoryEstimate) -> int:
    """Bytes that the peak is lower; 0 where it is not worth speaking of."""
    saved = before.peak_reserved - after.peak_reserved
    return saved if saved >= WORTH * before.peak_reserved else 0


def usual_length(checkpoint: Checkpoint) -> int:
    """Tokens a sequence that one trains with when nothing is said: of a decoder the SFTTrainer's, of others as the GLUE runs of the
    LoRA papers; as far as the model has positions."""
    length = MemorySettings.preset("sft").sequence if default_task(checkpoint) == "CAUSAL_LM" else 128
    positions = checkpoint.config.get("max_position_embeddings")
    return min(length, positions) if isinstance(positions, int) else length


def _base_dtype(checkpoint: Checkpoint, settings: MemorySettings) -> str:
    if settings.base_dtype:
        return settings.base_dtype
    held: dict[str, int] = {}
    for weight in checkpoint.weights:
        held[weight.dtype] = held.get(weight.dtype, 0) + weight.parameters
    return "fp32" if max(held, key=held.__getitem__, default="") == "float32" else "bf16"
