"""The measurements, the most valuable first: what is measured (a room and its arguments), under a name that is its file's.

Items that share a model, a base precision and a method stand together, so that the worker builds each model once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

ROOMS = ("memory", "tuner", "spectra", "race")


@dataclass(frozen=True)
class Item:
    """room: a module of this package with a function ``measure``. arguments: its keyword arguments. seconds: expected on a card."""

    room: str
    name: str
    arguments: dict = field(default_factory=dict)
    seconds: float = 10.0

    @property
    def id(self) -> str:
        return f"{self.room}-{self.name}"


@dataclass(frozen=True)
class Size:
    """Which models a run uses: from `models.SHAPES`. small: where many cases are run; large: where few are. cases: (batch, tokens). share: of the
    seconds that items take on a card."""

    small: str
    middle: str
    large: str
    cases: tuple[tuple[int, int], ...]
    rank: int
    adapters: tuple[int, ...]
    share: float = 1.0


SIZES = {
    "toy": Size("toy", "toy", "toy", ((2, 16),), 4, (1, 4), 0.2),
    "full": Size("0.5b", "3b", "8b", ((1, 1024), (4, 512)), 16, (1, 8, 64, 1024)),
}
METHODS = ("lora-xs", "lora", "vera", "head-only", "full")
BASES = ("bf16", "4bit", "8bit", "autocast")


def items(size: str, only: tuple[str, ...] = ()) -> list[Item]:
    """Every measurement of this size once, in the order they are run. only: rooms; all when empty."""
    seen: dict[str, Item] = {}
    for item in _in_order(SIZES[size]):
        if not only or item.room in only:
            seen.setdefault(item.id, replace(item, seconds=item.seconds * SIZES[size].share))
    return list(seen.values())


def _in_order(size: Size) -> Iterator[Item]:
    for method in METHODS:
        yield from _memory(size, size.middle, method, "bf16", ("plain",))
    yield from _tuner(size, size.middle, "bf16")
    yield Item("spectra", f"layer-{size.large}", {"shape": size.large}, 60)
    for method in ("lora-xs", "lora"):
        yield from _memory(size, size.large, method, "4bit", ("plain",))
        yield from _memory(size, size.middle, method, "bf16", ("trainer",))
    yield Item("tuner", f"start-{size.large}", {"what": "start", "shape": size.large, "base": "bf16", "rank": size.rank}, 90)
    yield Item(
        "tuner", f"mixed-batch-{size.small}", {"what": "mixed_batch", "shape": size.small, "adapters": size.adapters}, 60
    )
    yield Item("tuner", f"reload-{size.small}", {"what": "reload", "shape": size.small, "rank": size.rank}, 15)
    for method in METHODS:
        yield from _memory(size, size.large, method, "bf16", ("plain",))
    yield Item("race", "stsb", {"task": "stsb", "seeds": 5 if size.small != "toy" else 1}, 120)
    for base in BASES:
        for method in METHODS:
            if base == "bf16" or not (method == "full" and base in ("4bit", "8bit")):
                yield from _memory(size, size.small, method, base, ("plain", "trainer"))
    for base in ("4bit", "8bit"):
        yield from _tuner(size, size.middle, base)
    yield from _tuner(size, size.large, "bf16")


def _memory(size: Size, shape: str, method: str, base: str, loops: tuple[str, ...]) -> Iterator[Item]:
    for batch, sequence in size.cases:
        for checkpointing in (False, True):
            for loop in loops:
                yield Item(
                    "memory",
                    f"{shape}-{base}-{method}-{batch}x{sequence}-{'checkpointed' if checkpointing else 'kept'}-{loop}",
                    {
                        "shape": shape,
                        "method": method,
                        "base": base,
                        "rank": size.rank,
                        "batch": batch,
                        "sequence": sequence,
                        "checkpointing": checkpointing,
                        "loop": loop,
                    },
                    6,
                )


def _tuner(size: Size, shape: str, base: str) -> Iterator[Item]:
    batch, sequence = size.cases[-1]
    for compiled in (False, True):
        for method in ("lora-xs", "lora", "vera"):
            if not (compiled and base != "bf16"):
                yield Item(
                    "tuner",
                    f"step-{shape}-{base}-{method}-{'compiled' if compiled else 'eager'}",
                    {
                        "what": "step",
                        "shape": shape,
                        "base": base,
                        "method": method,
                        "rank": size.rank,
                        "batch": batch,
                        "sequence": sequence,
                        "compiled": compiled,
                    },
                    60 if compiled else 15,
                )
