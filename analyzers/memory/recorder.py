"""Records the birth and death of every tensor storage while a training step runs on the meta device.

Nothing is computed: the shapes are real, the numbers are absent. A storage is born when an operator returns it and dies when
the last reference goes (a weak reference tells), exactly as on a GPU, where autograd keeps the same references alive.
Knows nothing about models or methods; `step` drives it and `replay` reads what it recorded.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from analyzers.memory import operator_cache
from analyzers.memory.kernels import stand_in, workspace_bytes
from analyzers.memory.trace import Layer, Trace

# Phases outside of forward and backward: operators go through the parameters of all layers, one by one or many at once.
OUTSIDE = ("clip", "optimizer")


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

    def label_new(self, tensor: torch.Tensor, label: str) -> None:
        """Says what the block of `tensor` is, unless that has been said."""
        number = self.number(tensor)
        if number is not None:
            self.trace.labels.setdefault(number, label)

    def adopt(self, tensor: torch.Tensor, label: str, owner: Layer | None) -> None:
        """Takes a tensor made before the recording, such as a weight, as living from now on."""
        self._see(tensor, owner)
        self.label(tensor, label)

    def announcing(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """A list of `tensors` that notes, while an optimizer goes through it, which layer it has come to."""
        recorder = self

        class Announcing(list):
            def __iter__(self):
                for tensor in super().__iter__():
                    if recorder.phase in OUTSIDE:
                        recorder.enter(recorder.phase, recorder.owner(tensor))
                    yield tensor
                recorder.enter(recorder.phase)

        return Announcing(tensors)

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
            other = stand_in(func, args)
            if other is not None:
                result = other(*args, **kwargs)
                self._see_all(result, args)
            elif sizes:
                with self.temporary(sizes):
                    result = operator_cache.run(func, args, kwargs)
                    self._see_all(result, args)
            else:
                result = operator_cache.run(func, args, kwargs)
                self._see_all(result, args)
        return result

    def _see_all(self, result, args: tuple) -> None:
        """Records the blocks of an operator's result."""
        outside = self.phase in OUTSIDE
        if isinstance(result, torch.Tensor):
            self._see(result, self._outside_owner(args) if outside and self._is_new(result) else None)
        elif isinstance(result, (tuple, list)):
            sources = (
                args[0] if outside and args and isinstance(args[0], (tuple, list)) and len(args[0]) == len(result) else None
            )
            if sources:
                self.enter(self.phase)
            owner = self._outside_owner(args) if outside and not sources else None
            for position, one in enumerate(result):
                if isinstance(one, torch.Tensor):
                    self._see(one, self.owner(sources[position]) if sources else owner)

    def _outside_owner(self, args: tuple) -> Layer | None:
        """The layer that a new block of clipping or the optimizer belongs to: that of the tensor it is made from, such as a
        parameter or its gradient. What is made from nothing, such as a state that begins as zeros, belongs to the parameter that
        has been come to (`announcing`); what is made from a list of tensors, such as a norm over all of them, to none.

        A loop over parameters goes through the layers one after another, which is noted as it is in a forward pass."""
        source = next((one for one in args if isinstance(one, (list, tuple)) or self._is_known(one)), None)
        if self._is_known(source):
            self.enter(self.phase, self.owner(source))
        elif source is not None and any(isinstance(one, torch.Tensor) for one in source):
            self.enter(self.phase)
        return self.layer

    def _is_known(self, value) -> bool:
        return isinstance(value, torch.Tensor) and self.number(value) is not None

    def _is_new(self, tensor: torch.Tensor) -> bool:
        return tensor.is_meta and tensor.untyped_storage()._cdata not in self._live

    def owner(self, tensor: torch.Tensor) -> Layer | None:
        """The layer that the block of `tensor` belongs to."""
        number = self.number(tensor)
        return None if number is None else self.trace.owners[number]

    def _see(self, tensor: torch.Tensor, owner: Layer | None = None) -> None:
        """Records the block of `tensor`, unless it is known. owner: its layer, the one that is running when None."""
        if not self._is_new(tensor):
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if not size:
            return
        key = storage._cdata
        number = self._born(size, owner or self.layer)
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
