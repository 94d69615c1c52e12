"""What decides the memory of a fine-tune, in sentences with figures; each figure is an estimate of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyzers.memory.answer import MemoryEstimate
from analyzers.memory.estimate import estimate_memory
from analyzers.memory.labels import PARTS
from analyzers.memory.settings import MemorySettings
from analyzers.methods import METHODS
from analyzers.words import gib_text, whole_percent
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    from loraxs_core.checkpoint import Checkpoint

NAMES = {"loss_head": "the loss head", "weights": "base weights", "optimizer": "the optimizer's states"}
PLURAL = ("weights", "adapters", "gradients", "optimizer", "activations", "temporaries")
SAVED = ("activations", "attention")  # what is kept for the backward pass
SLOWER = (
    30  # per cent: the layers' forward pass a second time, a third of a step's forward and backward; less with frozen bases
)
WORTH_SAYING = 0.05  # savings below this share of the peak are "almost nothing"
FROZEN = ": it keeps the inputs of frozen layers, of which nothing is kept without it"
LARGE = 0.10  # parts below this share of the peak are not named, the largest apart


def what_decides(
    checkpoint: Checkpoint,
    settings: MemorySettings,
    estimate: MemoryEstimate | None = None,
    *,
    rival: MemorySettings | None = None,
) -> list[str]:
    """Sentences: the largest parts, what gradient checkpointing would save, and LoRA-XS against LoRA with and without it.

    estimate: of `settings`, where it is known already. rival: for LoRA-XS the LoRA to compare with and the other way round; the
    same settings with the other method when None.
    """
    estimate = estimate or estimate_memory(checkpoint, settings)
    other = settings.but(gradient_checkpointing=not settings.gradient_checkpointing)
    try:
        toggled = estimate_memory(checkpoint, other)
    except SettingsError as none:  # transformers checkpoints no layers of this architecture
        toggled = None
        sentences = [_largest(estimate), str(none).partition(";")[0] + "."]
    else:
        sentences = [_largest(estimate), _checkpointing(settings, estimate, toggled)]
    opposite = None if settings.peft_config is not None else {"lora-xs": "lora", "lora": "lora-xs"}.get(settings.method)
    if opposite:
        rival = rival or settings.but(method=opposite)
        against = estimate_memory(checkpoint, rival)
        pairs = [(estimate, against)]
        if toggled:
            against_toggled = estimate_memory(checkpoint, rival.but(gradient_checkpointing=other.gradient_checkpointing))
            pairs.append((toggled, against_toggled))
        if settings.method == "lora":
            pairs = [(one, two) for two, one in pairs]
        lora = rival if settings.method == "lora-xs" else settings
        sentences.append(_against(lora, *pairs, phrase="without" if settings.gradient_checkpointing else "with"))
    return sentences


def _checkpointing(settings: MemorySettings, estimate: MemoryEstimate, toggled: MemoryEstimate) -> str:
    """What gradient checkpointing saves, or what it would save. toggled: the estimate with it the other way."""
    on = settings.gradient_checkpointing
    without, with_it = (toggled, estimate) if on else (estimate, toggled)
    saved = without.peak_reserved - with_it.peak_reserved
    if saved <= -WORTH_SAYING * without.peak_reserved:
        why = FROZEN if settings.method == "head-only" else ""
        return f"Gradient checkpointing {'needs' if on else 'would need'} {gib_text(-saved)} more here, and more time{why}."
    verb, here = ("saves", " here") if on else ("would save", "")
    return f"Gradient checkpointing {verb} {_amount(saved, without)}{here}, at up to {SLOWER} % more time."


def _largest(estimate: MemoryEstimate) -> str:
    """The largest parts, three at most."""
    ordered = sorted(PARTS, key=lambda part: -estimate.breakdown[part])
    first, *rest = [part for part in ordered[:3] if part == ordered[0] or _share(estimate, part) >= LARGE]
    text = (
        f"At the peak, {_name(first)} {'are' if first in PLURAL else 'is'} {whole_percent(_share(estimate, first))} of "
        f"{gib_text(estimate.peak_allocated)}"
    )
    others = [f"{_name(part)} {whole_percent(_share(estimate, part))}" for part in rest]
    return ", ".join([text, " and ".join(others)] if others else [text]) + "."


def _against(
    lora: MemorySettings,
    here: tuple[MemoryEstimate, MemoryEstimate],
    there: tuple[MemoryEstimate, MemoryEstimate] | None = None,
    *,
    phrase: str,
) -> str:
    """LoRA-XS against LoRA as the settings are (here) and with checkpointing the other way (there); pairs of LoRA-XS, LoRA."""
    small, large = here
    now = large.peak_reserved - small.peak_reserved
    kept = sum(large.breakdown[part] - small.breakdown[part] for part in SAVED)
    why = ""
    if now >= WORTH_SAYING * large.peak_reserved and kept >= now / 2:
        part = "" if kept >= now else f"{gib_text(kept)} of it "
        why = f" ({part}inputs of adapters, which it need not keep for the backward pass)"
    rank = "by the same plan" if lora.plan else f"of rank {lora.rank or METHODS['lora'].default_rank}"
    said = f"Against LoRA {rank}, LoRA-XS {_saves(now, large)} here{why}"
    if there is None:
        return f"{said}."
    then = there[1].peak_reserved - there[0].peak_reserved
    return f"{said}, {_saves(then, there[1]).removeprefix('saves ')} {phrase} checkpointing."


def _saves(size: float, of: MemoryEstimate) -> str:
    return f"needs {gib_text(-size)} more" if size <= -WORTH_SAYING * of.peak_reserved else f"saves {_amount(size, of)}"


def _amount(size: float, of: MemoryEstimate) -> str:
    """A saving; one that nobody would notice in `of` is called that."""
    if size >= WORTH_SAYING * of.peak_reserved:
        return gib_text(size)
    return f"almost nothing ({gib_text(size)})" if size >= 0 else f"nothing ({gib_text(-size)} more)"


def _share(estimate: MemoryEstimate, part: str) -> float:
    return estimate.breakdown[part] / estimate.peak_allocated


def _name(part: str) -> str:
    return NAMES.get(part, part)
