"""From a recording of few layers to the recording of the whole model.

Layers of a stack do the same things in the same order. So the events of one regular layer (or of one period of layers, where
kinds of layers alternate), copied as often as the model is deep, give the stream of births and deaths that the whole model
would have given; the allocator then sees exactly what it would have seen. A death names a block by the layer it was born in,
relative to the layer where it dies, and by its place among the births of that layer; so copies free the blocks of copies.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby, pairwise

from analyzers.memory.trace import Layer, Trace


class Irregular(Exception):
    """The layers do not repeat, so the model has to be recorded whole."""


@dataclass(frozen=True)
class Repetition:
    """Which layers of a recording are copied. start, period: the layers [start, start + period) of every stack. copies: how many
    times they stand in the whole model. depth: layers of the recording, in each stack."""

    start: int
    period: int
    copies: int
    depth: int

    @property
    def extra(self) -> int:
        """Layers that the whole model has more than the recording."""
        return self.period * (self.copies - 1)

    def representative(self, position: int) -> int:
        """The recorded layer that stands for the layer at `position` of the whole model."""
        if position < self.start:
            return position
        if position < self.start + self.period * self.copies:
            return self.start + (position - self.start) % self.period
        return position - self.extra

    def positions(self, layer: int) -> list[int]:
        """Where a recorded layer stands in the whole model."""
        if layer < self.start:
            return [layer]
        if layer < self.start + self.period:
            return [layer + copy * self.period for copy in range(self.copies)]
        return [layer + self.extra]

    def repeats(self, layer: int) -> bool:
        return self.start <= layer < self.start + self.period


def repeat_layers(trace: Trace, plan: Repetition) -> Trace:
    """The recording of the whole model. Raises Irregular where the recorded layers differ in what they do."""
    return _Repeater(trace, plan).run()


class _Repeater:
    def __init__(self, trace: Trace, plan: Repetition):
        self.old, self.plan = trace, plan
        self.new = Trace(roots=trace.roots)
        self.numbers: dict[tuple[int, int], int] = {}  # (old number, position of its layer) -> new number
        self.names, self.by_name = _names(trace)

    def run(self) -> Trace:
        segments = _segments(self.old)
        for repeated, group in groupby(segments, key=lambda one: self._is_repeated(one.layer)):
            group = list(group)
            if not repeated:
                for segment in group:
                    self._once(segment)
                continue
            copies = range(self.plan.copies)
            for copy in reversed(copies) if group[0].phase == "backward" else copies:
                for segment in group:
                    self._in_layer(segment, segment.layer[1] + copy * self.plan.period)
        self._check_deaths()
        return self.new

    def _check_deaths(self) -> None:
        """Raises Irregular where a copy outlives its original: something held the outputs of all layers and dropped them at once
        while the last layer ran, which a copy of the layer before it tells nothing about (DeBERTa's encoder does)."""
        living = set()
        for event in self.old.events:
            living.add(event) if event >= 0 else living.discard(~event)
        if any(number not in living for number, _ in self.numbers):
            raise Irregular

    def _is_repeated(self, layer: Layer | None) -> bool:
        return layer is not None and self.plan.repeats(layer[1])

    def _once(self, segment: _Segment) -> None:
        if segment.layer is not None:
            self._in_layer(segment, self.plan.positions(segment.layer[1])[0])
            return
        self._mark(segment.phase, None)
        # Outside of layers: what happens to the blocks of repeated layers happens to those of every copy, one copy after another.
        for repeated, run in groupby(segment.events, key=lambda event: self._is_repeated(self._owner(event))):
            if not repeated:
                for event in run:
                    owner = self._owner(event)
                    self._emit(event, -1 if owner is None else self.plan.positions(owner[1])[0])
                continue
            run = list(run)
            for copy in range(self.plan.copies):
                for event in run:
                    self._emit(event, self._owner(event)[1] + copy * self.plan.period)

    def _in_layer(self, segment: _Segment, position: int) -> None:
        """The events of a layer's segment, the layer standing at `position`."""
        stack, layer = segment.layer
        self._mark(segment.phase, (stack, position))
        for event in segment.events:
            number = event if event >= 0 else ~event
            owner = self.old.owners[number]
            if owner is None:
                self._emit(event, -1)
            elif owner[0] != stack:
                positions = self.plan.positions(owner[1])
                if len(positions) > 1:
                    raise Irregular
                self._emit(event, positions[0])
            else:
                at = position + owner[1] - layer
                representative = (stack, self.plan.representative(at))
                same = number if representative == owner else self.by_name.get((representative, self.names[number]))
                if same is None or self.old.sizes[same] != self.old.sizes[number]:
                    raise Irregular
                self._emit(same if event >= 0 else ~same, at)

    def _owner(self, event: int) -> Layer | None:
        return self.old.owners[event if event >= 0 else ~event]

    def _mark(self, phase: str, layer: Layer | None) -> None:
        self.new.marks.append((len(self.new.events), phase, layer))

    def _emit(self, event: int, position: int) -> None:
        old, new = self.old, self.new
        if event < 0:
            number = self.numbers.pop((~event, position), None)
            if number is None:
                raise Irregular
            new.events.append(~number)
            return
        if (event, position) in self.numbers:
            raise Irregular
        number = self.numbers[event, position] = len(new.sizes)
        new.sizes.append(old.sizes[event])
        new.births.append(old.births[event])
        new.owners.append(old.owners[event] and (old.owners[event][0], position))
        new.events.append(number)
        if event in old.labels:
            new.labels[number] = old.labels[event]


@dataclass(frozen=True)
class _Segment:
    phase: str
    layer: Layer | None
    events: list[int]


def _segments(trace: Trace) -> list[_Segment]:
    """The recording cut where another phase or layer begins."""
    marks = [*trace.marks, (len(trace.events), "end", None)]
    if trace.marks and trace.marks[0][0] > 0:
        raise Irregular
    return [_Segment(phase, layer, trace.events[start:end]) for (start, phase, layer), (end, *_) in pairwise(marks)]


def _names(trace: Trace):
    """Every block's name within its layer, (stretch of the step, how many births of the layer came before), and the way back."""
    names: dict[int, tuple[int, int]] = {}
    by_name: dict[tuple[Layer, tuple[int, int]], int] = {}
    counts: Counter = Counter()
    stretch = 0
    previous = None
    for segment in _segments(trace):
        if segment.phase != previous:
            stretch, previous = stretch + 1, segment.phase
        for event in segment.events:
            if event >= 0 and trace.owners[event] is not None:
                owner = trace.owners[event]
                names[event] = (stretch, counts[owner, stretch])
                counts[owner, stretch] += 1
                by_name[owner, names[event]] = event
    return names, by_name
