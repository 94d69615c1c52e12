"""Records the birth and death of every tensor storage while a training step runs on the meta device.

Nothing is computed: the shapes are real, the numbers are absent. A storage is born when an operator returns it and dies when
the last reference goes (a weak reference tells), exactly as on a GPU, where autograd keeps the same references alive.
Knows nothing about models or methods; `step` drives it and `replay` reads what it recorded.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from analyzers.memory import remembered
from analyzers.memory.kernels import workspace_bytes

OUTSIDE = ("clip", "optimizer")  # phases in which all layers are gone through by every operator

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


class Recorder(TorchDispatchMode):
    """A dispatch mode that fills a `Trace`; whoever drives the step says where the program is (`enter`, `module`)."""

    def __init__(self):
        super().__init__()
        self.trace = Trace()
        self.phase = "build"
        self.module = ""
        self.layer: Layer | None = None
        self._live: dict[int, tuple[int, weakref.ref]] = {}

    def enter(self, phase: str, layer: Layer | None = None) -> None:
        """Notes that the program moved to another phase or layer; blocks are born there from now on."""
        if (phase, layer) != (self.phase, self.layer) or not self.trace.marks:
            self.phase, self.layer = phase, layer
            self.trace.marks.append((len(self.trace.events), phase, layer))

    def number(self, tensor: torch.Tensor) -> int | None:
        """The block that holds `tensor`; None when it is not on the GPU."""
        found = self._live.get(tensor.untyped_storage()._cdata)
        return found[0] if found else None

    def label(self, tensor: torch.Tensor, label: str) -> None:
        """Says what the block of `tensor` is."""
        number = self.number(tensor)
        if number is not None:
            self.trace.labels[number] = label

    def adopt(self, tensor: torch.Tensor, label: str, owner: Layer | None) -> None:
        """Takes a tensor made before the recording, such as a weight, as living from now on."""
        self._see(tensor, owner=owner)
        self.label(tensor, label)

    def hold(self, size: int, label: str) -> None:
        """A block of `size` bytes that lives from now on, without a tensor behind it."""
        self.trace.labels[self._born(size)] = label

    @contextlib.contextmanager
    def temporary(self, sizes: list[int]) -> Iterator[None]:
        """Blocks that live as long as the body runs: the workspace of a kernel."""
        numbers = [self._born(size, self.layer) for size in sizes if size]
        yield
        for number in reversed(numbers):
            self.trace.events.append(~number)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Looking at a tensor is no part of the step, and costs time under a function mode.
        with torch._C.DisableTorchFunction():
            sizes = workspace_bytes(func, args, kwargs)
            if sizes:
                with self.temporary(sizes):
                    result = remembered.run(func, args, kwargs)
                    self._see_all(result, args)
            else:
                result = remembered.run(func, args, kwargs)
                self._see_all(result, args)
        return result

    def _see_all(self, result, args: tuple) -> None:
        """Records the blocks of an operator's result. Outside of forward and backward a block belongs to the layer of the tensor
        it is made from, such as the parameter that an optimizer updates."""
        if isinstance(result, torch.Tensor):
            self._see(result, args[0] if args else None)
        elif isinstance(result, (tuple, list)):
            source = args[0] if args and isinstance(args[0], (tuple, list)) and len(args[0]) == len(result) else None
            for position, one in enumerate(result):
                if isinstance(one, torch.Tensor):
                    self._see(one, source[position] if source else None)

    def _see(self, tensor: torch.Tensor, source=None, owner: Layer | None = None) -> None:
        if tensor.device.type != "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()
        if not size:
            return
        owner = owner or self.layer
        if self.phase in OUTSIDE and isinstance(source, torch.Tensor):
            made_from = self.number(source)
            owner = None if made_from is None else self.trace.owners[made_from]
        number = self._born(size, owner)
        self._live[key] = (number, weakref.ref(storage, self._death(key, number)))

    def _born(self, size: int, owner: Layer | None = None) -> int:
        trace = self.trace
        number = len(trace.sizes)
        trace.sizes.append(size)
        trace.births.append((self.phase, self.module))
        trace.owners.append(owner)
        trace.events.append(number)
        return number

    def _death(self, key: int, number: int) -> Callable[[weakref.ref], None]:
        def died(_reference) -> None:
            self._live.pop(key, None)
            self.trace.events.append(~number)

        return died
