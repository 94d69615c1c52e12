"""From a recording to its peak: how high memory went, what the allocator held, and what was alive at the highest moment."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from analyzers.memory.allocator import least_capacity, replay
from analyzers.memory.labels import labels_of
from analyzers.memory.trace import Trace


@dataclass(frozen=True)
class Profile:
    """Peaks in bytes. least: the smallest capacity with which the step still runs, to 1 %. parts: allocated bytes at the highest moment, by (part, detail)."""

    allocated: int
    reserved: int
    least: int
    parts: dict[tuple[str, str], int]


def profile(trace: Trace, *, empty_cache_between_steps: bool = False, expandable: bool = False) -> Profile:
    """Replays `trace` through the allocator.

    empty_cache_between_steps: the training loop calls ``torch.cuda.empty_cache()`` after each optimizer step. expandable: its allocator has expandable segments.
    """
    empty_at = {at for at, phase, _ in trace.marks if phase == "zero-grad"} if empty_cache_between_steps else ()
    played = replay(trace.sizes, trace.events, empty_cache_at=empty_at, expandable=expandable)
    peak = played.allocated.index(played.peak_allocated)
    alive = set()
    for event in trace.events[: peak + 1]:
        if event >= 0:
            alive.add(event)
        else:
            alive.discard(~event)
    labels = labels_of(trace)
    parts: Counter = Counter()
    for number in alive:
        parts[labels[number]] += played.rounded[number]
    least = least_capacity(trace.sizes, trace.events, played, empty_cache_at=empty_at, expandable=expandable)
    return Profile(played.peak_allocated, played.peak_reserved, least, dict(parts))
