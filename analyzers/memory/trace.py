"""`Trace`: what a recording of a training step holds. Plain numbers and words; nothing here needs PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

Layer = tuple[str, int]  # a stack of layers and a number in it


@dataclass
class Trace:
    """What a recording holds.

    sizes: bytes of each block, by its number. births: (phase, module path) at the birth of each block. owners: the layer that
    each block belongs to, None outside of layers. events: a block's number when it is born, its bitwise complement (~number)
    when it dies. marks: (position in `events`, phase, layer) where the program moved on. labels: block number -> what the block
    is, where that is known better than from its birth. roots: paths of the modules around the transformer, in which the loss is
    computed.
    """

    sizes: list[int] = field(default_factory=list)
    births: list[tuple[str, str]] = field(default_factory=list)
    owners: list[Layer | None] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    marks: list[tuple[int, str, Layer | None]] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    roots: frozenset[str] = frozenset()
