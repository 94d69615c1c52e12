"""What fits a GPU: the largest batch and the longest sequence, by search over estimates, for each method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analyzers.memory.answer import MemoryEstimate
from analyzers.memory.estimate import estimate_memory
from analyzers.memory.gpus import Gpu
from analyzers.memory.settings import MOST, MemorySettings, position_limit

if TYPE_CHECKING:
    from loraxs_core.checkpoint import Checkpoint

SEQUENCE_STEP = 64  # sequences are searched in multiples of this, and up to what the model has positions for


@dataclass(frozen=True)
class Fit:
    """What fits one GPU with one method.

    batch: the largest at the sequence asked for; 0 when not even one sequence fits. sequence: the longest at the batch asked for;
    0 when none fits. at_batch, at_sequence: the estimates there. Fitting means that the upper end of the interval fits, so that
    it will not run out of memory. limited_by_model: the sequence is the model's own limit, not the GPU's. Unless settings say
    otherwise, several sequences are padded and a single one is not, as in `estimate_memory`.
    """

    gpu: Gpu
    method: str
    batch: int
    sequence: int
    at_batch: MemoryEstimate | None
    at_sequence: MemoryEstimate | None
    limited_by_model: bool = False


def fit(checkpoint: Checkpoint, settings: MemorySettings, gpu: Gpu) -> Fit:
    """The largest batch and the longest sequence of `settings` that fit `gpu`; see `Fit`."""
    found: dict[tuple[int, int], MemoryEstimate] = {}

    def needed(batch: int, sequence: int) -> int:
        if (batch, sequence) not in found:
            found[batch, sequence] = estimate_memory(checkpoint, settings.but(batch=batch, sequence=sequence))
        return found[batch, sequence].interval[1]

    def tokens(steps: int) -> int:
        return min(steps * SEQUENCE_STEP, longest)

    limit = position_limit(checkpoint)
    longest = limit or MOST["sequence"]
    batch = largest(lambda value: needed(value, settings.sequence), MOST["batch"], gpu.bytes)
    steps = largest(lambda value: needed(settings.batch, tokens(value)), -(-longest // SEQUENCE_STEP), gpu.bytes)
    length = tokens(steps)
    return Fit(
        gpu,
        settings.label,
        batch,
        length,
        found.get((batch, settings.sequence)),
        found.get((settings.batch, length)),
        limited_by_model=length == limit,
    )


def fit_methods(
    checkpoint: Checkpoint, settings: MemorySettings, gpu: Gpu, methods: Sequence[str] = ("full", "lora", "vera", "lora-xs")
) -> list[Fit]:
    """`fit` for several methods, each with its own default rank unless settings name one; a plan serves methods that take one.

    A quantised base leaves full fine-tuning out.
    """
    return [
        fit(checkpoint, settings.but(method=method), gpu) for method in methods if not (method == "full" and settings.quantize)
    ]


def largest(bytes_at: Callable[[int], int], most: int, room: int) -> int:
    """The largest whole number from 1 to `most` at which `bytes_at`, which grows, is at most `room`; 0 when 1 is too many.

    Memory is nearly a straight line in batch and sequence, so the next try lies where the line through the two nearest tries
    meets `room`: a handful of tries where halving takes a dozen. Halving takes over where the line does not help.
    """
    if most < 1 or bytes_at(1) > room:
        return 0
    if most == 1:
        return 1
    good, bad = (1, bytes_at(1)), None
    step = min(2, most)
    for tries in range(64):
        size = bytes_at(step)
        if size <= room:
            good, before = (step, size), good
            if step == most:
                return most
            slope = (good[1] - before[1]) / max(1, good[0] - before[0])
        else:
            bad = (step, size)
            slope = (bad[1] - good[1]) / (bad[0] - good[0])
        if bad and bad[0] - good[0] <= 1:
            return good[0]
        ceiling = bad[0] - 1 if bad else most
        guess = good[0] + int((room - good[1]) / slope) if slope > 0 else ceiling
        if bad and tries % 3 == 2:
            guess = (good[0] + bad[0]) // 2
        step = min(max(guess, good[0] + 1), ceiling)
    return good[0]
