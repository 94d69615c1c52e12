"""What an adapter file says about the frozen bases it was trained with, in a few bytes a module, and what follows from it.

A `Fingerprint` of bases is the identity of the weight (`loraxs_core.bases.Identity`) and a sketch: k random projections of every
pair of singular vectors, ``(Omega_u^T u_j + Omega_v^T v_j) / sqrt(2)``, where k is `sketch_rows(r)`. The sketch tells a flipped
sign or a turned group of nearly equal singular values from the right one, and for slightly different weights (a 16-bit copy) it
is enough to solve for the turn (`realign`). All modules' fingerprints, with a checksum of every R and of the settings that give
R its meaning, form one byte string, the *proof*, stored beside the R matrices.

Layout, little-endian. Header (20 bytes): magic ``LXS2``, checksum of all that follows, checksum of the settings, checksum of the
modules saved whole (0 when there are none), flags (1: the base was quantised). Then for every module, by rank and then in order of its
name (16 + k r bytes): the three digests of the weight, the checksum of its R, and the sketch, k rows of r int8 in units of `STEP`.

No name is part of it: a library that calls the modules otherwise than when the adapter was saved hands over the same matrices, and
`placed` finds which is whose by the weights. ``LXS1``, which is read as ever, has the modules in order of their names alone, and its
checksums hold names.

Works on NumPy arrays; knows nothing about modules, PEFT or files.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from loraxs_core.bases import GROUP_GAP, Bases, Identity
from loraxs_core.errors import AdapterError
from loraxs_core.random_numbers import gaussian

MAGICS = {b"LXS1": 1, b"LXS2": 2}
VERSION = 2
_HEADER = struct.Struct("<4sI")
_SUMMARY = struct.Struct("<III")
_RECORD = struct.Struct("<IIII")
MIN_ROWS, MAX_ROWS = 5, 16
STEP = 1 / 28  # of the sketch: its values are nearly standard normal, so int8 reaches 4.5 deviations
# A sketch entry of the same vector differs by rounding to int8, half a step, and by what float32 and bf16 vectors lose.
MATCH = 0.5 * STEP + 2e-3
QUANTISED = 1
# What helps when an adapter is not what was saved.
RESTORE = (
    'restore what was saved, or, if it was edited on purpose, sign it (loraxs_core.tuner.sign) or load it with verify="bases".'
)
EXTRA = 8  # triples beyond the rank that a turned vector may have leaked into
TOLERABLE = 0.05  # estimated relative error of dW above which a 16-bit copy or a quantised base is refused


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
    """settings, head: checksums. quantised: whether the base was, in training. records: by module name, in the proof's order.
    version: of the layout; in the first one, checksums hold names."""

    settings: int
    head: int
    quantised: bool
    records: dict[str, Record]
    version: int = VERSION


def sketch_rows(r: int) -> int:
    """Projections kept per singular pair for rank `r`: enough at small ranks, a tenth of R's bytes at large ones."""
    return max(MIN_ROWS, min(MAX_ROWS, r // 4))


def proof_bytes(ranks: Mapping[str, int]) -> int:
    """Length of the proof of an adapter with these ranks by module name."""
    return _HEADER.size + _SUMMARY.size + sum(_RECORD.size + sketch_rows(r) * r for r in ranks.values())


def fingerprint(found: Bases) -> Fingerprint:
    return Fingerprint(found.identity, sketch(found.U, found.Vt), np.asarray(found.S, dtype=np.float64))


def sketch(U: np.ndarray, Vt: np.ndarray, rows: int = MAX_ROWS) -> np.ndarray:
    """(rows, r) float32: random projections of the pairs in U (out x r) and Vt (r x in)."""
    columns = np.arange(rows)
    left = gaussian(U.shape[0], columns, "proof-left").T @ U
    right = gaussian(Vt.shape[1], columns, "proof-right").T @ Vt.T
    return ((left + right) / np.sqrt(2)).astype(np.float32)


def ordered(ranks: Mapping[str, int], version: int = VERSION) -> list[str]:
    """The modules with these ranks in the order of a proof: by rank, which tells records apart by their length, then by name."""
    return sorted(ranks) if version == 1 else sorted(ranks, key=lambda name: (ranks[name], name))


def encode(proof: Proof) -> np.ndarray:
    """The proof as uint8, `proof_bytes` long, in the layout of today."""
    parts = [_SUMMARY.pack(proof.settings, proof.head, QUANTISED * proof.quantised)]
    for name in ordered({name: record.sketch.shape[1] for name, record in proof.records.items()}):
        record = proof.records[name]
        identity = record.identity
        parts.append(_RECORD.pack(identity.exact, identity.bfloat16, identity.float16, record.checksum))
        parts.append(quantise(record.sketch).tobytes())
    body = b"".join(parts)
    return np.frombuffer(bytearray(_HEADER.pack(b"LXS2", zlib.crc32(body)) + body), dtype=np.uint8)


def decode(blob: np.ndarray, ranks: Mapping[str, int], *, edited: bool = False) -> Proof:
    """The proof of an adapter with these ranks by module name; records are named as if no module had been renamed.

    edited: take it even where its bytes were changed. Raises AdapterError when it is none, or of another length.
    """
    raw = np.asarray(blob, dtype=np.uint8).tobytes()
    version = MAGICS.get(raw[:4])
    if len(raw) != proof_bytes(ranks) or version is None:
        raise AdapterError(
            f"The adapter's proof of its bases (loraxs_proof) is damaged or does not fit its configuration; {RESTORE}"
        )
    if not edited and _HEADER.unpack_from(raw)[1] != zlib.crc32(raw[_HEADER.size :]):
        raise AdapterError(
            f"The adapter's proof of its bases (loraxs_proof) was edited (averaged along with R?) or damaged; {RESTORE}"
        )
    settings, head, flags = _SUMMARY.unpack_from(raw, _HEADER.size)
    position, records = _HEADER.size + _SUMMARY.size, {}
    for name in ordered(ranks, version):
        r = ranks[name]
        exact, bfloat16, float16, checksum = _RECORD.unpack_from(raw, position)
        position += _RECORD.size
        rows = sketch_rows(r)
        values = np.frombuffer(raw, dtype=np.int8, count=rows * r, offset=position).reshape(rows, r)
        position += rows * r
        records[name] = Record(Identity(exact, bfloat16, float16), checksum, values.astype(np.float32) * STEP)
    return Proof(settings, head, bool(flags & QUANTISED), records, version)


def placed(
    records: Mapping[str, Record], checksums: Mapping[str, int] | None, weights: Mapping[str, Identity]
) -> tuple[dict[str, str], list[str]]:
    """(module -> name of its record, the modules whose R is none that was recorded) after modules may have been renamed.

    records: as `decode` names them. checksums: of every module's R, None to let them be anything. weights: the identities of the
    modules' weights, as far as known. A weight that is recorded, or its 16-bit copy, settles whose record it is, so that two R cannot
    change places; where the weights are none of those recorded, R itself does.
    """
    by_weight: dict[tuple[int, str, int], list[str]] = {}
    by_core: dict[tuple[int, int], list[str]] = {}
    for name, record in records.items():
        r = record.sketch.shape[1]
        for kind in ("exact", "bfloat16", "float16"):
            by_weight.setdefault((r, kind, getattr(record.identity, kind)), []).append(name)
        by_core.setdefault((r, record.checksum), []).append(name)
    found: dict[str, str] = {}
    free, changed = dict.fromkeys(records), []

    def fits(name: str, other: str) -> bool:
        same = records[other].sketch.shape == records[name].sketch.shape
        return other in free and same and (checksums is None or records[other].checksum == checksums[name])

    for name, record in records.items():
        r, weight = record.sketch.shape[1], weights.get(name)
        kinds = () if weight is None else ("exact", "bfloat16", "float16")
        likely = next((by_weight[key] for kind in kinds if (key := (r, kind, getattr(weight, kind))) in by_weight), None)
        if likely is None:
            likely = [*records] if checksums is None else by_core.get((r, checksums[name]), [])
        whose = name if name in likely and fits(name, name) else next((other for other in likely if fits(name, other)), None)
        if whose is None:
            changed.append(name)
        else:
            del free[whose]
            found[name] = whose
    return found, sorted(changed)


def quantise(values: np.ndarray) -> np.ndarray:
    """Sketch values as int8 in units of `STEP`."""
    return np.clip(np.rint(values / STEP), -127, 127).astype(np.int8)


@dataclass(frozen=True)
class Verdict:
    """What became of one module's bases.

    status: ``same`` (the weight it was trained with), ``copy`` (a 16-bit rounding of it, or it of this one), ``quantised``
    (neither, but one of the two is a quantised form), ``other`` (another weight). error: estimated relative error of dW; for
    ``other`` and ``quantised`` the relative distance between the two sketches, about 1 for unrelated weights. bases: to use instead of those
    rebuilt from the weight, None when these are right.
    """

    status: str
    error: float
    bases: Bases | None = None

    @property
    def usable(self) -> bool:
        return self.status != "other" and self.error <= TOLERABLE


def judge(
    record: Record,
    known: Fingerprint,
    rebuild: Callable[[int, float], Bases],
    *,
    rms: Callable[[], float],
    quantised: bool = False,
    seeded: bool = False,
) -> Verdict:
    """Whether the bases of a local weight are those that `record` was saved with, and the turn that makes them so.

    known: fingerprint of the local bases. rebuild(columns, gap): the local bases again with more columns or another width of the
    groups that are pinned as a whole (`loraxs_core.bases.GROUP_GAP`). rms(): root mean square of the weight's numbers.
    quantised: whether the base is, or was in training. seeded: whether the vectors come from a seed instead of the weight.
    """
    rows, r = record.sketch.shape
    if known.identity.same_weight(record.identity):
        if is_sketch_of(record.sketch, known.sketch[:rows]):
            return Verdict("same", 0.0)
        # Only a group whose width is at the very threshold can have been pinned differently.
        for gap in (GROUP_GAP, GROUP_GAP / 4, 4 * GROUP_GAP):
            local = rebuild(r + EXTRA, gap)
            signs = _signs(record.sketch, sketch(local.U, local.Vt, rows)[:, :r])
            flipped = Bases(local.U[:, :r] * signs, local.S[:r], signs[:, None] * local.Vt[:r], local.identity)
            if is_sketch_of(record.sketch, sketch(flipped.U, flipped.Vt, rows)):
                return Verdict("same", 0.0, flipped)
        noise = 1e-13 * float(known.S[0])
    elif known.identity.rounded_copy(record.identity):
        if seeded and is_sketch_of(record.sketch, known.sketch[:rows]):
            return Verdict("copy", 0.0)
        halves = known.identity.bfloat16 == record.identity.bfloat16
        noise = rms() * ROUNDING_NOISE[halves]
    else:
        status = "quantised" if quantised else "other"
        return Verdict(status, _distance(record.sketch, known.sketch[:rows]))
    local = rebuild(r + EXTRA, GROUP_GAP)
    turned, error = realign(record.sketch, local, noise)
    status = "same" if known.identity.same_weight(record.identity) else "copy"
    return Verdict(status, error, turned)


# Entries of a weight rounded to float16, bfloat16 differ from it by this much of their root mean square: a uniform error of half a
# unit in the last place, which lies between 1/2 and 1 times 2^-11 and 2^-8 of the entry.
ROUNDING_NOISE = {False: 2**-11 / np.sqrt(12) * 1.5, True: 2**-8 / np.sqrt(12) * 1.5}


def realign(target: np.ndarray, local: Bases, noise: float) -> tuple[Bases, float]:
    """Turns `local` bases of a slightly different weight into those whose sketch is `target` (k, r).

    To first order, adding E to a weight turns its singular vector j towards vector i by ``e_ij / |s_i - s_j|`` with
    ``e_ij = u_i^T E v_j`` (Stewart & Sun, Matrix Perturbation Theory, V.4): hardly anywhere, and a lot between close singular
    values. With every e_ij ~ N(0, noise^2) this is a prior for the turn Q in ``U = U_local Q``; the k numbers of the sketch are the
    measurement, int8 rounding its error; Q is the posterior mean, made orthonormal.

    local: at least r triples; those beyond r catch vectors that left the space. noise: standard deviation of an entry of E.
    Returns (bases (r triples), estimated relative error of dW).
    """
    k, r = target.shape
    design = sketch(local.U, local.Vt, k).astype(np.float64)
    values = np.asarray(local.S, dtype=np.float64)
    turn = np.zeros((len(values), r))
    leftover = np.zeros(r)
    for j in range(r):
        gap = np.abs(values - values[j])
        gap[j] = np.inf
        spread = np.minimum((noise / np.maximum(gap, noise)) ** 2, 0.5)
        spread[j] = min(0.5, spread.sum() / 2) + 1e-12
        covariance = (design * spread) @ design.T + np.eye(k) * STEP**2 / 12
        explained = np.linalg.solve(covariance, np.stack([target[:, j] - design[:, j], target[:, j] + design[:, j]], axis=1))
        likely = [(target[:, j] - sign * design[:, j]) @ explained[:, side] for side, sign in enumerate((1, -1))]
        side = int(np.argmin(likely))
        turn[:, j] = spread * (design.T @ explained[:, side])
        turn[j, j] += (1, -1)[side]
        gain = design * spread
        leftover[j] = spread.sum() - np.einsum("ki,ki->", gain, np.linalg.solve(covariance, gain))
    left, _, right = np.linalg.svd(turn, full_matrices=False)
    turn = left @ right
    turned = Bases(local.U @ turn, np.asarray(local.S[:r]), turn.T @ local.Vt, local.identity)
    # Left and right vectors turn alike, so their errors add up to twice the variance.
    return turned, float(np.sqrt(2 * leftover.mean()))


def _signs(target: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.where((target * found).sum(axis=0) < 0, -1.0, 1.0)


def is_sketch_of(target: np.ndarray, found: np.ndarray) -> bool:
    """Whether the sketch `found` (k, r) is the recorded `target`, up to the rounding of one."""
    reach = 127 * STEP
    return bool(np.abs(target - np.clip(found, -reach, reach)).max(initial=0.0) <= MATCH)


def _distance(target: np.ndarray, found: np.ndarray) -> float:
    """Relative distance of two sketches after the best signs: 0 for equal bases, about 1 for unrelated ones."""
    found = found * _signs(target, found)
    return float(np.linalg.norm(target - found) / max(np.linalg.norm(found), 1e-30))
