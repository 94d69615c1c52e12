"""What is under which key of a store's file, and what its index says of one version of an adapter, in 44 bytes.

    i NAME 0 ~VERSION   a record of the index; 2^64 - 1 - version, so that the newest version of a name is the first of its keys
    n COUNTER           the highest number given so far: version, plan
    p NUMBER            a plan, as JSON
    q CHECKSUM          the number of the plan with this checksum
    s CHECKSUM          what many adapters have in common
    z VERSION PART      numbers: part 0 is what fills whole pages, the others are pieces of the rest (`loraxs_core.store.pages`)

Numbers are 8 bytes, big-endian. Rows are last, so that what is put is appended. A record, little-endian: number of the plan, bytes of the row, microseconds since 1970 of the put, XXH3-128 of the row, and the
XXH3-64 of the key and all of this: a record that was changed, or that stands under another key, is known to be none.
"""

from __future__ import annotations

import struct
import unicodedata
from dataclasses import dataclass

from xxhash import xxh3_64_digest, xxh3_128_digest

from loraxs_core.errors import StoreDamaged, StoreError

INDEX, COUNTERS, PLANS, PLAN_NUMBERS, SHARED, ROWS = b"i", b"n", b"p", b"q", b"s", b"z"
MOST_NAME = 400  # bytes of a name; LMDB's keys end at 511
_NEWEST = (1 << 64) - 1
_BODY = struct.Struct("<IQQ16s")
_CHECK = 8


@dataclass(frozen=True, order=True)
class Version:
    """One version of an adapter.

    version: number of the put, counted over the whole store: it only grows and is never given again. plan: number of the plan that the
    row is laid out by. size: bytes of the row. created: microseconds since 1970. checksum: XXH3-128 of the row.
    """

    name: str
    version: int
    plan: int
    size: int
    created: int
    checksum: bytes

    @property
    def label(self) -> str:
        """``name@version``, as messages and shards call it."""
        return f"{self.name}@{self.version}"


def check_name(name: str) -> str:
    """`name`, if an adapter can be called so. Raises StoreError."""
    if not isinstance(name, str) or not name.strip() or name != name.strip():
        raise StoreError(f"{name!r} is no name for an adapter; give one without spaces around it.")
    if any(unicodedata.category(mark) in ("Cc", "Cs", "Zl", "Zp") for mark in name):
        raise StoreError(f"{name!r} is no name for an adapter: it holds a control character.")
    if name == "__base__":
        raise StoreError("__base__ is PEFT's name for no adapter; choose another.")
    if len(name.encode()) > MOST_NAME:
        raise StoreError(f"{name[:40]!r}… is too long for an adapter's name: at most {MOST_NAME} bytes.")
    return name


def prefix_of(name: str) -> bytes:
    """What the keys of all versions of `name` begin with."""
    return INDEX + name.encode() + b"\0"


def key_of(name: str, version: int) -> bytes:
    return prefix_of(name) + number_bytes(_NEWEST - version)


def plan_key(number: int) -> bytes:
    return PLANS + number_bytes(number)


def number_bytes(number: int) -> bytes:
    return number.to_bytes(8, "big")


def checksum(row: bytes | bytearray | memoryview) -> bytes:
    return xxh3_128_digest(row)


def pack(found: Version) -> bytes:
    body = _BODY.pack(found.plan, found.size, found.created, found.checksum)
    return body + xxh3_64_digest(key_of(found.name, found.version) + body)


def unpack(key: bytes | memoryview, record: bytes | memoryview) -> Version:
    """The version that `record` describes. Raises StoreDamaged for a record that is not what was written under `key`."""
    key, record = bytes(key), bytes(record)
    if len(record) != _BODY.size + _CHECK or xxh3_64_digest(key + record[: _BODY.size]) != record[_BODY.size :]:
        raise StoreDamaged(f"The index entry of {shown(key)} is damaged.")
    plan, size, created, digest = _BODY.unpack_from(record)
    return Version(key[1:-9].decode(), _NEWEST - int.from_bytes(key[-8:], "big"), plan, size, created, digest)


def shown(key: bytes) -> str:
    """A key for a message, damaged or not."""
    name, version = key[1:-9], _NEWEST - int.from_bytes(key[-8:], "big")
    return f"{name.decode(errors='backslashreplace')}@{version}"
