"""The proof of an adapter (`loraxs_core.proof`) without what depends on its numbers, and filled in again.

What depends on them: the checksum of every R, that of the modules saved whole, and the checksum of the proof itself. All else is the
same for every adapter of one base and plan. Works on the proof's bytes in either layout: in the first, checksums hold names and records
stand in the order of names; in the second they hold none, and records stand by rank first.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from loraxs_core.number_checksums import core_checksum, head_checksum
from loraxs_core.proof import sketch_rows

if TYPE_CHECKING:
    import torch

_LAYOUTS = {b"LXS1": 1, b"LXS2": 2}
_CRC, _HEAD, _RECORDS = 4, 12, 20  # where the proof's own checksum, that of modules saved whole, and the records stand
_IDENTITY = 12  # bytes of a record before the checksum of its R
_NUMBER = struct.Struct("<I")


def emptied(proof: torch.Tensor, ranks: Mapping[str, int]) -> bytes:
    """The bytes of `proof` with zeros for what depends on the numbers; empty for one of no known layout."""
    raw = bytearray(proof.numpy().tobytes())
    if bytes(raw[:4]) not in _LAYOUTS or _end(raw, ranks) != len(raw):
        return b""
    _NUMBER.pack_into(raw, _CRC, 0)
    _NUMBER.pack_into(raw, _HEAD, 0)
    for _, at in _records(raw, ranks):
        _NUMBER.pack_into(raw, at + _IDENTITY, 0)
    return bytes(raw)


def filled(
    template: bytes, ranks: Mapping[str, int], cores: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The proof of an adapter with these R (by module) and modules saved whole (by name)."""
    import torch

    raw = bytearray(template)
    named = _LAYOUTS.get(bytes(raw[:4])) == 1
    _NUMBER.pack_into(raw, _HEAD, head_checksum(whole, named=named))
    for name, at in _records(raw, ranks):
        _NUMBER.pack_into(raw, at + _IDENTITY, core_checksum(cores[name], name if named else ""))
    _NUMBER.pack_into(raw, _CRC, zlib.crc32(raw[_CRC + _NUMBER.size :]))
    return torch.frombuffer(raw, dtype=torch.uint8)


def identities(template: bytes, ranks: Mapping[str, int]) -> list[bytes]:
    """The digests of the base's weights, a weight each."""
    return sorted(template[at : at + _IDENTITY] for _, at in _records(template, ranks))


def _records(raw: bytes | bytearray, ranks: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """(module, where its record begins)."""
    first = _LAYOUTS[bytes(raw[:4])] == 1
    at = _RECORDS
    for name in sorted(ranks) if first else sorted(ranks, key=lambda name: (ranks[name], name)):
        yield name, at
        at += _IDENTITY + _NUMBER.size + sketch_rows(ranks[name]) * ranks[name]


def _end(raw: bytes | bytearray, ranks: Mapping[str, int]) -> int:
    return _RECORDS + sum(_IDENTITY + _NUMBER.size + sketch_rows(r) * r for r in ranks.values())
