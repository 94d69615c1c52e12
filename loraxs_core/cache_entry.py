"""One entry of the cache as a file, and whether it can be believed.

An entry's file, little-endian: magic ``LXSKEPT1``, XXH3-128 checksum of all that follows, length of the label, length of the
payload, the label (JSON: kind, key, model, what, meta), the payload (safetensors, or nothing). XXH3 reads at memory speed; it
tells damage, not forgery: who can write the folder can also write a fitting checksum.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from xxhash import xxh3_128

SUFFIX = ".kept"
_START = struct.Struct("<8s16s")
_SIZES = struct.Struct("<IQ")
_MAGIC = b"LXSKEPT1"
_MOST_LABEL = 1 << 24  # bytes; no label is near it, a damaged length may be


class Damaged(Exception):
    """A file that is no entry, or not the one it was."""


@dataclass(frozen=True)
class Label:
    """What an entry says it is. kind: of artefact. model, what: for the person who lists the cache. meta: its small values."""

    kind: str
    key: str
    model: str
    what: str
    meta: dict


def pack(label: bytes, payload: bytes) -> bytes:
    """The bytes of an entry of this label (JSON) and payload, checksum included."""
    body = _SIZES.pack(len(label), len(payload)) + label + payload
    return _START.pack(_MAGIC, _checksum(body)) + body


def read(path: Path) -> tuple[Label, memoryview]:
    """The label and the payload of the entry at `path`, after its checksum was found right.

    Raises Damaged, or OSError. Never waits: what is no plain file (a pipe, a device) is Damaged.
    """
    with _opened(path) as (file, size):
        checksum, length, payload = _start(file)
        if _START.size + _SIZES.size + length + payload != size:
            raise Damaged("it has another length than it says")
        file.seek(_START.size)
        body = memoryview(file.read(size - _START.size))
    if _checksum(body) != checksum:
        raise Damaged("its checksum does not fit")
    return _label(bytes(body[_SIZES.size :][:length])), body[_SIZES.size + length :]


def read_label(path: Path) -> Label:
    """The label alone, unchecked: for listing. Raises Damaged or OSError."""
    with _opened(path) as (file, _):
        _, length, _ = _start(file)
        return _label(file.read(min(length, _MOST_LABEL)))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """(the file, its length); only plain files, and without waiting for the writer of a pipe."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Damaged("it is no plain file")
        with open(handle, "rb", closefd=False) as file:
            yield file, status.st_size
    finally:
        os.close(handle)


def _start(file: BinaryIO) -> tuple[bytes, int, int]:
    """(checksum, bytes of the label, bytes of the payload) that an entry says it has."""
    raw = file.read(_START.size + _SIZES.size)
    if not raw.startswith(_MAGIC):
        raise Damaged("it is no entry of this cache")
    if len(raw) < _START.size + _SIZES.size:
        raise Damaged("it is cut off")
    return (_START.unpack_from(raw)[1], *_SIZES.unpack_from(raw, _START.size))


def _label(raw: bytes) -> Label:
    try:
        return Label(**json.loads(raw))
    except (ValueError, TypeError, RecursionError):
        raise Damaged("its label cannot be read") from None


def _checksum(body: bytes | memoryview) -> bytes:
    return xxh3_128(body).digest()
