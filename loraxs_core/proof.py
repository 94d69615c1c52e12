"""What an adapter file says about the frozen bases it was trained with, in a few bytes a module, and what follows from it.

A `Fingerprint` of bases is the identity of the weight (`loraxs_core.bases.Identity`) and a sketch: k random projections of every
pair of singular vectors, ``(Omega_u^T u_j + Omega_v^T v_j) / sqrt(2)``, where k is `sketch_rows(r)`. The sketch tells a flipped
sign or a turned group of nearly equal singular values from the right one, and for slightly different weights (a 16-bit copy) it
is enough to solve for the turn (`realign`). All modules' fingerprints, with a checksum of every R and of the settings that give
R its meaning, form one byte string, the *proof*, stored beside the R matrices.

Layout, little-endian. Header (16 bytes): magic ``LXS1``, checksum of the settings, checksum of the modules saved whole (0 when
there are none), flags (1: the base was quantised). Then for every module in order of its name (16 + k r bytes): the three digests
of the weight, the checksum of its R, and the sketch, k rows of r int8 in units of `STEP`.

Works on NumPy arrays; knows nothing about modules, PEFT or files.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from loraxs_core.bases import Bases, Identity
from loraxs_core.errors import AdapterError
from loraxs_core.random_numbers import gaussian

MAGIC = b"LXS1"
_HEADER = struct.Struct("<4sIII")
_RECORD = struct.Struct("<IIII")
MIN_ROWS, MAX_ROWS = 5, 16
STEP = 1 / 28  # of the sketch: its values are nearly standard normal, so int8 reaches 4.5 deviations
# A sketch entry of the same vector differs by rounding to int8, half a step, and by what float32 and bf16 vectors lose.
MATCH = 0.5 * STEP + 2e-3
QUANTISED = 1


@dataclass(frozen=True)
class Fingerprint:
    """identity: of the weight. sketch: (MAX_ROWS, r) float32, see the module's docstring. S: (r,) singular values."""

    identity: Identity
    sketch: np.ndarray
    S: np.ndarray

    def head(self, r: int) -> Fingerprint:
        return self if r == len(self.S) else Fingerprint(self.identity, self.sketch[:, :r], self.S[:r])


@dataclass(frozen=True)
class Record:
    """What a proof says of one module: identity of its weight, checksum of its R, sketch (k, r) of its bases."""

    identity: Identity
    checksum: int
    sketch: np.ndarray


@dataclass(frozen=True)
class Proof:
    """settings, head: checksums. quantised: whether the base was, in training. records: by module name."""

    settings: int
    head: int
    quantised: bool
    records: dict[str, Record]


def sketch_rows(r: int) -> int:
    """Projections kept per singular pair for rank `r`: enough at small ranks, a tenth of R's bytes at large ones."""
    return max(MIN_ROWS, min(MAX_ROWS, r // 4))


def proof_bytes(ranks: dict[str, int]) -> int:
    """Length of the proof of an adapter with these ranks by module name."""
    return _HEADER.size + sum(_RECORD.size + sketch_rows(r) * r for r in ranks.values())


def fingerprint(found: Bases) -> Fingerprint:
    return Fingerprint(found.identity, sketch(found.U, found.Vt), np.asarray(found.S, dtype=np.float64))


def sketch(U: np.ndarray, Vt: np.ndarray, rows: int = MAX_ROWS) -> np.ndarray:
    """(rows, r) float32: random projections of the pairs in U (out x r) and Vt (r x in)."""
    columns = np.arange(rows)
    left = gaussian(U.shape[0], columns, "proof-left").T @ U
    right = gaussian(Vt.shape[1], columns, "proof-right").T @ Vt.T
    return ((left + right) / np.sqrt(2)).astype(np.float32)


def encode(proof: Proof) -> np.ndarray:
    """The proof as uint8, `proof_bytes` long."""
    parts = [_HEADER.pack(MAGIC, proof.settings, proof.head, QUANTISED * proof.quantised)]
    for _, record in sorted(proof.records.items()):
        identity = record.identity
        parts.append(_RECORD.pack(identity.exact, identity.bfloat16, identity.float16, record.checksum))
        parts.append(quantise(record.sketch).tobytes())
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


def decode(blob: np.ndarray, ranks: dict[str, int]) -> Proof:
    """The proof of an adapter with these ranks by module name. Raises AdapterError when it is none or of another length."""
    raw = np.asarray(blob, dtype=np.uint8).tobytes()
    if len(raw) != proof_bytes(ranks) or raw[:4] != MAGIC:
        raise AdapterError(
            "The adapter's proof of its bases (loraxs_proof) is damaged or does not fit its configuration; copy the folder again."
        )
    _, settings, head, flags = _HEADER.unpack_from(raw)
    position, records = _HEADER.size, {}
    for name, r in sorted(ranks.items()):
        exact, bfloat16, float16, checksum = _RECORD.unpack_from(raw, position)
        position += _RECORD.size
        rows = sketch_rows(r)
        values = np.frombuffer(raw, dtype=np.int8, count=rows * r, offset=position).reshape(rows, r)
        position += rows * r
        records[name] = Record(Identity(exact, bfloat16, float16), checksum, values.astype(np.float32) * STEP)
    return Proof(settings, head, bool(flags & QUANTISED), records)


def quantise(values: np.ndarray) -> np.ndarray:
    """Sketch values as int8 in units of `STEP`."""
    return np.clip(np.rint(values / STEP), -127, 127).astype(np.int8)
