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

from analyzers.memory.kernels import workspace_bytes


@dataclass
class Trace:
    """What a recording holds.

    sizes: bytes of each block, by its number. births: (phase, module path) at the birth of each block. events: a block's number
    when it is born, its bitwise complement (~number) when it dies. marks: (position in `events`, phase, module path) where the
    program moved on. labels: block number -> what the block is, where that is known better than from its birth. roots: paths of
    the modules around the transformer, in which the loss is computed.
    """

    sizes: list[int] = field(default_factory=list)
    births: list[tuple[str, str]] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    marks: list[tuple[int, str, str]] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    roots: frozenset[str] = frozenset()


class Recorder(TorchDispatchMode):
    """A dispatch mode that fills a `Trace`; `phase` and `module` are set by whoever drives the step."""

    def __init__(self):
        super().__init__()
        self.trace = Trace()
        self.phase = "build"
        self.module = ""
        self._live: dict[int, tuple[int, weakref.ref]] = {}
        self._gone: list[int] = []

    def enter(self, phase: str, module: str = "") -> None:
        """Notes that the program moved to another phase or module; blocks are born there from now on."""
        self.phase, self.module = phase, module
        self.mark(phase, module)

    def mark(self, phase: str, place: str) -> None:
        """Starts a new stretch of the program, without a change to where blocks are born."""
        self.trace.marks.append((len(self.trace.events), phase, place))

    def number(self, tensor: torch.Tensor) -> int | None:
        """The block that holds `tensor`; None when it is not on the GPU."""
        found = self._live.get(tensor.untyped_storage()._cdata)
        return found[0] if found else None

    def label(self, tensor: torch.Tensor, label: str) -> None:
        """Says what the block of `tensor` is; recorded now if it was not seen yet."""
        self._see(tensor)
        number = self.number(tensor)
        if number is not None:
            self.trace.labels[number] = label

    def hold(self, size: int, label: str) -> None:
        """A block of `size` bytes that lives from now on, without a tensor behind it."""
        self.trace.labels[self._born(size)] = label

    @contextlib.contextmanager
    def temporary(self, sizes: list[int]) -> Iterator[None]:
        """Blocks that live as long as the body runs: the workspace of a kernel."""
        numbers = [self._born(size) for size in sizes if size]
        yield
        for number in reversed(numbers):
            self.trace.events.append(~number)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        sizes = workspace_bytes(func, args, kwargs)
        if sizes:
            with self.temporary(sizes):
                result = func(*args, **kwargs)
                self._see_all(result)
        else:
            result = func(*args, **kwargs)
            self._see_all(result)
        return result

    def _see_all(self, result) -> None:
        if isinstance(result, torch.Tensor):
            self._see(result)
        elif isinstance(result, (tuple, list)):
            for one in result:
                self._see_all(one)

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()
        if not size:
            return
        number = self._born(size)
        self._live[key] = (number, weakref.ref(storage, self._death(key, number)))

    def _born(self, size: int) -> int:
        trace = self.trace
        number = len(trace.sizes)
        trace.sizes.append(size)
        trace.births.append((self.phase, self.module))
        trace.events.append(number)
        return number

    def _death(self, key: int, number: int) -> Callable[[weakref.ref], None]:
        def died(_reference) -> None:
            self._live.pop(key, None)
            self.trace.events.append(~number)

        return died
