"""From a recording to peaks: what was alive when memory was highest, in every stretch of the step and over all of it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from analyzers.memory.allocator import replay
from analyzers.memory.parts import labels_of
from analyzers.memory.recorder import Trace

Key = tuple[int, str, str]


@dataclass(frozen=True)
class Peak:
    """Allocated bytes at one moment, by (part, detail)."""

    allocated: int
    parts: dict[tuple[str, str], float]


@dataclass(frozen=True)
class Profile:
    """Peaks of a recording. stretches: the highest moment within each stretch of the program (step, phase, place)."""

    reserved: int
    stretches: dict[Key, Peak]

    @property
    def peak(self) -> Peak:
        """The highest moment of all."""
        return max(self.stretches.values(), key=lambda peak: peak.allocated)


def profile(trace: Trace, layers: tuple[str, ...] = (), *, empty_cache_between_steps: bool = False) -> Profile:
    """Replays `trace` through the allocator and finds the highest moment of every stretch.

    layers: paths of the layers; stretches in the first and the last of a stack keep their place whatever the depth, so that
    recordings of different depths can be compared; those in between are folded into one.
    """
    empty_at = {at for at, phase, _ in trace.marks if phase == "zero-grad"} if empty_cache_between_steps else ()
    played = replay(trace.sizes, trace.events, empty_cache_at=empty_at)
    place = _places(layers)
    highest: dict[Key, tuple[int, int]] = {}
    step = 0
    marks = [*trace.marks, (len(trace.events), "end", "")]
    for (start, phase, module), (end, *_) in pairwise(marks):
        if phase == "zero-grad":
            step += 1
        if end > start:
            found = max(range(start, end), key=played.allocated.__getitem__)
            key = (step, phase, place(module))
            if key not in highest or played.allocated[found] > highest[key][0]:
                highest[key] = (played.allocated[found], found)
    return Profile(played.peak_reserved, _snapshots(trace, played.rounded, highest))


def _snapshots(trace: Trace, rounded: list[int], highest: dict[Key, tuple[int, int]]) -> dict[Key, Peak]:
    """What was alive at each of the moments `highest`."""
    labels = labels_of(trace)
    wanted: dict[int, list[Key]] = {}
    for key, (_, position) in highest.items():
        wanted.setdefault(position, []).append(key)
    alive: Counter = Counter()
    found: dict[Key, Peak] = {}
    for position, event in enumerate(trace.events):
        if event >= 0:
            alive[labels[event]] += rounded[event]
        else:
            alive[labels[~event]] -= rounded[~event]
        for key in wanted.get(position, ()):
            found[key] = Peak(highest[key][0], {label: size for label, size in alive.items() if size})
    return found


def _places(layers: tuple[str, ...]):
    """A function from a module's path to its place: layer numbers become first, last or between."""
    stacks: dict[str, list[int]] = {}
    for layer in layers:
        stack, _, number = layer.rpartition(".")
        stacks.setdefault(stack, []).append(int(number))
    ends = {stack: (min(numbers), max(numbers)) for stack, numbers in stacks.items()}
    pattern = re.compile(rf"^({'|'.join(map(re.escape, ends))})\.(\d+)") if ends else None
    known: dict[str, str] = {}

    def place(module: str) -> str:
        if module not in known:
            match = pattern.match(module) if pattern else None
            if match:
                first, last = ends[match[1]]
                number = int(match[2])
                where = "first" if number == first else "last" if number == last else "between"
                known[module] = f"{match[1]}.{where}{module[match.end() :]}"
            else:
                known[module] = module
        return known[module]

    return place
