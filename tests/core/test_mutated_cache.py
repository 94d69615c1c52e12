"""Cache entries with something wrong in them: exactly what was kept, or nothing; never an exception."""

from __future__ import annotations

import os
import random
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from xxhash import xxh3_128

from loraxs_core.cache import CacheRemark, Kept
from tests.fuzz import dumped, mutated_bytes, mutated_json, some, survived

ARRAYS = {
    "values": np.linspace(1, 2, 50),
    "basis": np.arange(40, dtype=np.float32).reshape(4, 10),
    "empty": np.zeros((0, 3), np.int8),
}
META = {"fits": True, "sums": {"a.safetensors": "0123"}, "peak": 1.5, "notes": ["é", None]}
LABEL = {"kind": "memory", "key": "", "model": "a model", "what": "a layer", "meta": META}


def sealed(entry: bytes) -> bytes:
    """`entry` with the checksum that fits it, as somebody who means to deceive would write it."""
    return entry[:8] + xxh3_128(entry[24:]).digest() + entry[24:]


def damaged(sound: bytes, draw: random.Random) -> tuple[bytes, bool]:
    """(the bytes, whether their checksum was made to fit)."""
    if draw.random() < 0.6:
        return mutated_bytes(sound, draw), False
    length, payload = struct.unpack("<IQ", sound[24:36])
    label, arrays = sound[36 : 36 + length], sound[36 + length :]
    match draw.randrange(4):
        case 0:
            label = dumped(mutated_json({**LABEL, "key": "x"}, draw), draw)
        case 1:
            arrays = mutated_bytes(arrays, draw)
        case 2:
            length, payload = draw.choice(((0, 0), (2**32 - 1, payload), (length, 2**64 - 1), (length - 1, payload + 1)))
            return sealed(sound[:24] + struct.pack("<IQ", length, payload) + label + arrays), True
        case 3:
            label = draw.choice((b"", b"null", b"[" * 100_000, b'{"kind": ' + b"9" * 5000 + b"}", b"\xff", label + b" "))
    return sealed(sound[:24] + struct.pack("<IQ", len(label), len(arrays)) + label + arrays), True


def decoded(meta: dict, arrays: dict) -> tuple:
    return (
        bool(meta["fits"]),
        float(meta["peak"]),
        meta["sums"]["a.safetensors"],
        arrays["values"] * 1,
        arrays["basis"],
        arrays["empty"],
    )


def same(one: tuple, other: tuple) -> bool:
    return all(
        np.array_equal(a, b) and getattr(a, "dtype", 0) == getattr(b, "dtype", 0) for a, b in zip(one, other, strict=True)
    )


def a_damaged_entry(which: int, folder: str) -> str:
    os.environ["LORAXS_CACHE"] = folder
    kept = Kept("memory", ())
    key = kept.key(str(which))
    kept.save(key, meta=META, arrays=ARRAYS, model="a model", what="a layer")
    right = kept.load(key, decoded)
    path = kept.path(key)
    content, fitting = damaged(path.read_bytes(), random.Random(which))
    whole = content == path.read_bytes()
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # any other remark is a fault
        warnings.simplefilter("ignore", CacheRemark)
        found = kept.load(key, decoded)
    if found is None:
        assert not whole
        kept.save(key, meta=META, arrays=ARRAYS)  # what is computed again is kept again
        assert same(kept.load(key, decoded), right)
        return "nothing"
    assert whole or fitting, "damage was believed"
    if not fitting:
        assert same(found, right)
    return "believed"


@some(quick=60)
def test_a_damaged_entry_is_nothing_or_exactly_what_was_kept(numbers, tmp_path):
    found = survived(a_damaged_entry, numbers, str(tmp_path))
    assert found["nothing"] > 0.8 * len(numbers), found


@pytest.mark.parametrize("number", range(20))
def test_the_mutators_change_something_and_repeat_themselves(number, tmp_path):
    """A fuzzer whose cases are all sound tests nothing."""
    sound = Path(__file__).read_bytes()
    one, other = (mutated_bytes(sound, random.Random(number)) for _ in range(2))
    assert one == other
    one, other = (dumped(mutated_json(LABEL, random.Random(number)), random.Random(number)) for _ in range(2))
    assert one == other
