"""Reads a safetensors file with NumPy, one tensor or one strip of rows at a time, and trusts nothing its header says.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data, without
holes (https://huggingface.co/docs/safetensors). The header is checked whole against the file's length when it is opened, so
that a lying header is one clear error and never a huge allocation. Knows nothing about models.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from xxhash import xxh3_128

from loraxs_core.dtypes import DTYPES
from loraxs_core.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
WINDOW_BYTES = 16 << 20  # how much of a file is mapped at a time
SAMPLES, SAMPLE_BYTES = 16, 4096  # blocks of a file that tell it from another of the same length
MAX_DIMENSIONS = 8
MAX_SIDE = 2**48  # no file is larger; keeps the arithmetic and the messages of lying headers small


UNREAD = {"F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}  # further ones of the format, which nothing here reads
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "U8": "u1", "BOOL": "?"} | {
    kind: f"<{kind[0].lower()}{int(kind[1:]) // 8}" for kind in ("I64", "I32", "I16", "U64", "U32", "U16")
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its dtype as safetensors spells it, its shape, and where its bytes lie in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def torch_dtype(self) -> str:
        """The dtype as PyTorch spells it, such as ``bfloat16``."""
        return DTYPES[self.dtype][1]

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class SafetensorsFile:
    """The tensors of one safetensors file.

    `entries` maps a tensor's name to its `TensorEntry`; `stamp` is what `file_stamp` said when it was opened, which changes when the
    file does; `read` returns a tensor, or some of its rows, as a NumPy array. Nothing
    is kept open or mapped between calls, so memory holds what was asked for and no more.
    """

    def __init__(self, path: str | os.PathLike):
        """Reads and checks the header. Raises CheckpointError when it and the file do not agree."""
        self.path = Path(path)
        self.metadata, self.entries, self.stamp = _read_header(self.path)

    @cached_property
    def sample(self) -> str:
        """A digest of `sampled_bytes` when it was first asked for. Raises CheckpointError when the file cannot be read."""
        return sampled_bytes(self.path)

    def is_float(self, name: str) -> bool:
        """Whether the tensor holds floating-point numbers that mean what they say (8-bit ones need their scales)."""
        return self._entry(name).dtype in ("F64", "F32", "F16", "BF16")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Entries `start` to `stop` along the first axis (all of them by default), in the stored precision or wider.

        bf16 and fp16 come back as float32 (exact); float32, float64 and integers as they are. Raises CheckpointError for a
        tensor that is not there, for 8-bit floats (see `codes`), and when the file shrank since it was opened.
        """
        entry = self._entry(name)
        dtype = self._numpy(entry)
        rows = entry.shape[0] if entry.shape else 1
        start, stop = _within(start, rows if stop is None else stop, rows)
        inner = math.prod(entry.shape[1:])
        raw = self._raw(entry, start * inner, (stop - start) * inner, dtype)
        return _widened(raw, entry.dtype).reshape((stop - start, *entry.shape[1:]) if entry.shape else ())

    def block(self, name: str, start: int, stop: int, left: int = 0, right: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` and columns `left` to `right` of a matrix; the matrices of a stack count as one below another.

        As `read` otherwise. Columns are gathered from the file without reading what lies between them into memory.
        """
        entry = self._entry(name)
        dtype = self._numpy(entry)
        columns = entry.shape[-1]
        start, stop = _within(start, stop, math.prod(entry.shape[:-1]))
        left, right = _within(left, columns if right is None else right, columns)
        if (left, right) == (0, columns) or stop == start or left == right:
            raw = self._raw(entry, start * columns, (stop - start) * columns, dtype).reshape(stop - start, columns)
            return _widened(raw[:, left:right], entry.dtype)
        # Mapped a window of rows at a time: pages of a map count as the process's memory for as long as it lives.
        gathered = np.empty((stop - start, right - left), dtype)
        step = max(1, WINDOW_BYTES // (columns * dtype.itemsize))
        for first in range(start, stop, step):
            height = min(step, stop - first)
            try:
                window = np.memmap(self.path, dtype, "r", entry.begin + first * columns * dtype.itemsize, (height, columns))
            except (OSError, ValueError) as error:
                raise self._shrank(entry) from error
            gathered[first - start : first - start + height] = window[:, left:right]
        return _widened(gathered, entry.dtype)

    def codes(self, name: str, start: int, count: int) -> np.ndarray:
        """`count` bytes of a tensor from its byte `start` on, as they are: the codes of a quantised format."""
        return self._raw(self._entry(name), start, count, np.dtype("u1"))

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self.entries[name]
        except KeyError:
            raise CheckpointError(f"{self.path} holds no tensor named {name!r}.") from None

    def _numpy(self, entry: TensorEntry) -> np.dtype:
        if entry.dtype not in _NUMPY:
            raise CheckpointError(
                f"Tensor {entry.name!r} of {self.path.name} is stored as {entry.torch_dtype}, which needs its scales to be read; "
                "convert the checkpoint to bfloat16 first."
            )
        return np.dtype(_NUMPY[entry.dtype])

    def _raw(self, entry: TensorEntry, first: int, count: int, dtype: np.dtype) -> np.ndarray:
        """`count` items from item `first` of a tensor on, undecoded."""
        try:
            with open(self.path, "rb") as file:
                file.seek(entry.begin + first * dtype.itemsize)
                raw = np.fromfile(file, dtype=dtype, count=count)
        except OSError as error:
            raise CheckpointError(f"Cannot read {self.path}: {error.strerror or error}.") from error
        if raw.size != count:
            raise self._shrank(entry)
        return raw

    def _shrank(self, entry: TensorEntry) -> CheckpointError:
        return CheckpointError(f"{self.path} ends inside tensor {entry.name!r}: it changed while it was read; copy it again.")


def file_stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    """(bytes, modification time in ns, inode, change time in ns) of a file.

    The modification time can be set to anything (``cp -p``, rsync, an archive); the change time is the file system's own, and a file
    put in the place of another has another inode.
    """
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns


def sampled_bytes(path: Path) -> str:
    """A digest of `SAMPLES` blocks spread over the file at `path`, its last one among them: a few milliseconds, whatever its size.

    For file systems whose inodes and change times mean nothing. Raises CheckpointError when the file cannot be read.
    """
    digest = xxh3_128()
    try:
        with open(path, "rb") as file:
            last = max(0, os.fstat(file.fileno()).st_size - SAMPLE_BYTES)
            for number in range(SAMPLES):
                file.seek(last * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error
    return digest.hexdigest()


def _within(start: int, stop: int, size: int) -> tuple[int, int]:
    stop = max(0, min(stop, size))
    return min(max(start, 0), stop), stop


def _widened(raw: np.ndarray, dtype: str) -> np.ndarray:
    """16-bit floats as float32, exactly; everything else as it is."""
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return raw.astype(np.float32) if dtype == "F16" else raw


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, TensorEntry], tuple[int, int, int, int]]:
    def refuse(reason: str, remedy: str = "download or copy it again") -> CheckpointError:
        return CheckpointError(f"{path} is not a readable safetensors file: {reason}; {remedy}.")

    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise refuse(f"it has only {size} bytes")
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES or 8 + length > size:
                raise refuse(f"its header claims {length:,} bytes and the file has {size:,}")
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error

    def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        seen: dict[str, object] = {}
        for key, value in pairs:
            if key in seen:
                raise refuse(f"its header names {_short(key)} twice")
            seen[key] = value
        return seen

    try:
        # As the reference implementation: UTF-8 alone, where Python would take UTF-16 and a byte order mark as well.
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise refuse("its header is not JSON") from error
    if not isinstance(header, dict):
        raise refuse("its header is not a JSON object")
    try:
        "".join(header).encode()
    except UnicodeEncodeError:
        raise refuse("a tensor's name is no text (half of a character)") from None
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refuse("its metadata is no table of texts")
    data = 8 + length
    entries = {name: _entry(name, fields, data, size, refuse) for name, fields in header.items()}
    cursor = data
    for entry in sorted(entries.values(), key=lambda one: (one.begin, one.end)):
        if entry.begin != cursor:
            raise refuse(
                f"tensor {_short(entry.name)} does not begin where the one before it ends (overlapping or missing data)"
            )
        cursor = entry.end
    if cursor != size:
        raise refuse(f"its tensors end at byte {cursor:,} and the file has {size:,} (truncated, or something was appended)")
    return metadata, entries, file_stamp(status)


def _entry(name: str, fields: object, data: int, size: int, refuse) -> TensorEntry:
    def whole(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SIDE

    full, name = name, _short(name)
    if not isinstance(fields, dict):
        raise refuse(f"the header entry of {name} is malformed")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if isinstance(dtype, str) and dtype in UNREAD:
        raise refuse(f"tensor {name} is stored as {dtype}, which is not decoded", "give the checkpoint it was made from")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(f"tensor {name} has the unknown dtype {_short(dtype)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(whole(side) for side in shape):
        raise refuse(f"tensor {name} has the impossible shape {_short(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(whole(offset) for offset in offsets):
        raise refuse(f"tensor {name} has malformed data offsets")
    begin, end = offsets
    claimed = math.prod(shape) * DTYPES[dtype][0]
    if end - begin != claimed:
        raise refuse(
            f"tensor {name} of shape {shape} and dtype {dtype} needs {claimed:,} bytes, its offsets give {end - begin:,}"
        )
    if data + end > size:
        raise refuse(f"it is truncated: tensor {name} ends at byte {data + end:,} and the file has {size:,}")
    return TensorEntry(full, dtype, tuple(shape), data + begin, data + end)


def _short(value: object) -> str:
    """A value from the file as it goes into a message: one line, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"
