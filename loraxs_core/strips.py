"""Matrices that are read a few rows or a few columns at a time, so that none has to be held whole.

Every class here has a `shape`, and `rows` and `columns` that give float32 or float64, exact to what is stored. They wrap one
another: a transposed one, some rows of one, the difference of two.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from loraxs_core.errors import CheckpointError
from loraxs_core.safetensors_file import SafetensorsFile, TensorEntry


class Strips(Protocol):
    """A matrix that can be read in strips."""

    shape: tuple[int, int]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, (stop - start) x columns."""
        ...

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Columns `start` to `stop`, rows x (stop - start)."""
        ...


class StoredTensor(Protocol):
    """A tensor of a checkpoint as numbers, however it is stored: what `Checkpoint` asks of a format."""

    file: SafetensorsFile
    entry: TensorEntry
    sources: tuple[SafetensorsFile, ...]  # every file its numbers come from
    shape: tuple[int, ...]
    dtype: str  # as PyTorch spells it, or the name of a quantised format
    out_first: bool | None  # whether a stack's matrices are (out x in); None where the architecture decides

    def matrix(self, expert: int | None) -> Strips:
        """The matrix, or one of a stack of them, as it lies in the file."""
        ...


class PlainTensor:
    """A tensor of floating-point numbers, stored as they are."""

    out_first = None

    def __init__(self, file: SafetensorsFile, entry: TensorEntry, shape: tuple[int, ...] | None = None):
        """shape: (experts, rows, columns) where the file does not tell a stack of matrices from one tall one."""
        self.file, self.entry, self.shape, self.dtype = file, entry, shape or entry.shape, entry.torch_dtype
        self.sources = (file,)

    def matrix(self, expert: int | None) -> Strips:
        return PlainStrips(self.file, self.entry, self.shape[-2:], expert or 0)


class PlainStrips:
    """A matrix in a file, of `shape`: the only one of the tensor, or number `index` of a stack."""

    def __init__(self, file: SafetensorsFile, entry: TensorEntry, shape: tuple[int, int], index: int = 0):
        if not file.is_float(entry.name):
            raise CheckpointError(
                f"{entry.name} in {file.path.name} holds {entry.torch_dtype} numbers of an unknown quantisation; "
                "give the checkpoint it was made from."
            )
        self.file, self.entry, self.shape = file, entry, shape
        self.first = index * self.shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.file.block(self.entry.name, self.first + start, self.first + stop)

    def columns(self, start: int, stop: int) -> np.ndarray:
        return self.file.block(self.entry.name, self.first, self.first + self.shape[0], start, stop)


class Transposed:
    """A matrix whose transpose is stored."""

    def __init__(self, inner: Strips):
        self.inner, self.shape = inner, inner.shape[::-1]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.inner.columns(start, stop).T

    def columns(self, start: int, stop: int) -> np.ndarray:
        return self.inner.rows(start, stop).T


class SelectedRows:
    """Some rows of a matrix, in the order of `index`: one part of a fused projection."""

    def __init__(self, inner: Strips, index: np.ndarray):
        self.inner, self.index, self.shape = inner, index, (len(index), inner.shape[1])

    def rows(self, start: int, stop: int) -> np.ndarray:
        wanted = self.index[start:stop]
        if not len(wanted):
            return self.inner.rows(0, 0)
        first = int(wanted.min())
        return self.inner.rows(first, int(wanted.max()) + 1)[wanted - first]

    def columns(self, start: int, stop: int) -> np.ndarray:
        return self.inner.columns(start, stop)[self.index]


class Subtracted:
    """One matrix minus another of the same shape."""

    def __init__(self, minuend: Strips, subtrahend: Strips):
        self.minuend, self.subtrahend, self.shape = minuend, subtrahend, minuend.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.minuend.rows(start, stop) - self.subtrahend.rows(start, stop)

    def columns(self, start: int, stop: int) -> np.ndarray:
        return self.minuend.columns(start, stop) - self.subtrahend.columns(start, stop)


class Product:
    """A matrix known as the product of a tall and a wide one, B (out x r) times A (r x in), formed a strip at a time."""

    def __init__(self, left: np.ndarray, right: np.ndarray):
        self.factors, self.shape = (left, right), (left.shape[0], right.shape[1])

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.factors[0][start:stop] @ self.factors[1]

    def columns(self, start: int, stop: int) -> np.ndarray:
        return self.factors[0] @ self.factors[1][:, start:stop]
