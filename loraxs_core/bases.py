"""The frozen pair (A, B) of a base weight: built from its singular vectors, pinned, fingerprinted, cached on disk.

``dW = scaling * B R A`` with B = U diag(s_out) (out x r) and A = diag(s_in) V^T (r x in); where the singular values sit is
`sigma`. The same weight must give the same pair on every machine, or a stored R means something else:

* a pair of singular vectors has a free sign: pinned by a fixed random functional (`loraxs_core.svd.pin_signs`);
* nearly equal singular values leave a free rotation: within such a group, the basis is the one nearest to fixed random
  vectors (orthogonal Procrustes), which depends on the spanned subspace alone;
* where singular values vanish, left and right vectors are not paired: each side is pinned alone.

Works on NumPy arrays; knows nothing about modules, PEFT or files of adapters.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loraxs_core.cache import Damaged, Kept
from loraxs_core.errors import AdapterError
from loraxs_core.random_numbers import gaussian
from loraxs_core.svd import truncated_svd

VECTORS = ("top", "middle", "bottom", "random")
SIGMAS = ("input", "output", "split", "none")

# Singular values closer than this, relative to sigma_1, form a group whose basis is pinned as a whole. float64 vectors are off by
# about 1e-15 * sigma_1 / gap: below 1e-6 for everything outside a group.
GROUP_GAP = 1e-8
NULL = 1e-12  # relative to sigma_1; below it, left and right vectors are unrelated
CHECKED = 1e-3  # relative to sigma_1; above it, float32 vectors tell their singular value (see `are_triples`)
CACHE_MIN_SIZE = 1 << 16  # numbers; the SVD of a smaller matrix is quicker than reading a file


_CACHE = Kept("bases", ("loraxs_core",))
_remembered: dict[tuple, Bases] | None = None


@contextlib.contextmanager
def remembered_bases(known: dict[tuple, Bases]) -> Iterator[None]:
    """Inside the block, `bases` puts what it computes into `known` and computes nothing again that is there: for one process that
    builds the same adapter many times. What comes out is what would be computed, to the last bit."""
    global _remembered
    before, _remembered = _remembered, known
    try:
        yield
    finally:
        _remembered = before


@dataclass(frozen=True)
class Bases:
    """Singular vectors of one weight W0 (out x in), pinned.

    U: (out, r). S: (r,), descending for ``top``. Vt: (r, in). Orthonormal; float64, or float32 when they come from the cache.
    identity: digest of W0's numbers, see `Identity`.
    """

    U: np.ndarray
    S: np.ndarray
    Vt: np.ndarray
    identity: Identity

    @property
    def rank(self) -> int:
        return len(self.S)

    def head(self, r: int) -> Bases:
        """The first `r` triples."""
        return self if r == self.rank else Bases(self.U[:, :r], self.S[:r], self.Vt[:r], self.identity)

    def pair(self, sigma: str = "input") -> tuple[np.ndarray, np.ndarray]:
        """(A, B) = (diag(s_in) V^T, U diag(s_out)): A (r x in), B (out x r). See `placement`."""
        s_in, s_out = placement(self.S, sigma)
        return s_in[:, None] * self.Vt, self.U * s_out


@dataclass(frozen=True)
class GivenBases(Bases):
    """A frozen pair that came as it is and not as singular vectors of W0: from an adapter's file, or from any other initialisation.

    A: (r, in). B: (out, r); any finite numbers. U and Vt are their directions of length 1, S the product of their lengths.
    """

    A: np.ndarray
    B: np.ndarray

    @classmethod
    def of(cls, A: np.ndarray, B: np.ndarray, identity: Identity) -> GivenBases:
        """identity: of the weight that the pair belongs to."""
        wide, tall = np.asarray(A, dtype=np.float64), np.asarray(B, dtype=np.float64)
        rows, columns = np.linalg.norm(wide, axis=1), np.linalg.norm(tall, axis=0)
        Vt = wide / np.where(rows > 0, rows, 1)[:, None]
        return cls(tall / np.where(columns > 0, columns, 1), rows * columns, Vt, identity, np.asarray(A), np.asarray(B))

    def head(self, r: int) -> GivenBases:
        return self if r == self.rank else GivenBases.of(self.A[:r], self.B[:, :r], self.identity)

    def pair(self, sigma: str = "input") -> tuple[np.ndarray, np.ndarray]:
        """(A, B) as they came, to the last bit; the singular values are where they were put."""
        return self.A, self.B


@dataclass(frozen=True)
class Identity:
    """Short digests of a weight's numbers: as they are (in float32), and rounded to bfloat16 and to float16.

    Two weights with the same `exact` are the same. A copy in 16 bits of a 32-bit weight shares that rounding's digest with it,
    whichever of the two is asked about; a fine-tuned sibling shares none.
    """

    exact: int
    bfloat16: int
    float16: int

    def same_weight(self, other: Identity) -> bool:
        return self.exact == other.exact

    def rounded_copy(self, other: Identity) -> bool:
        """Whether one is the other, or a 16-bit rounding of it."""
        return self.exact == other.exact or self.bfloat16 == other.bfloat16 or self.float16 == other.float16


def bases(
    matrix: np.ndarray,
    r: int,
    *,
    vectors: str = "top",
    seed: int = 0,
    name: str = "the weight",
    cache: bool = True,
    columns: int | None = None,
    gap: float = GROUP_GAP,
    model: str = "",
) -> Bases:
    """The frozen directions of W0 = `matrix` (out x in) for rank `r`, computed in float64 and pinned.

    A float64 weight is rounded to float32 first, so that it and its float32 copy have the same bases.

    vectors: ``top`` (the paper's), ``middle``, ``bottom`` (the last r), or ``random``: orthonormal, S = 1, from `seed` (the
    paper's control). columns: with ``top``, how many triples to return, at least `r`; the extra ones serve re-alignment.
    gap: how close, relative to sigma_1, singular values must be to be pinned as one group.
    cache: whether to look up and keep ``top`` triples in the user's cache folder; they are then float32, and those that were kept
    are used only if they still are the singular triples of this weight. model: whose weight it is, for the list of the cache.

    Raises AdapterError naming `name` when `r` exceeds min(out, in), NonFiniteWeights for NaN or infinities.
    """
    matrix = np.asarray(matrix, dtype=np.float32)
    full = min(matrix.shape)
    if not 1 <= r <= full:
        raise AdapterError(
            f"{name} is {matrix.shape[0]}x{matrix.shape[1]}, so its LoRA-XS rank must be between 1 and {full}, not {r}."
        )
    if vectors not in VECTORS:
        raise AdapterError(f"Unknown choice of singular vectors {vectors!r}; there are {', '.join(VECTORS)}.")
    digest, who = identify(matrix)
    wanted = min(full, max(r, columns or r)) if vectors == "top" else r
    kept = vectors == "top" and cache and gap == GROUP_GAP and matrix.size >= CACHE_MIN_SIZE
    kept = kept and os.environ.get("LORAXS_BASES_CACHE", "1") != "0"
    known, key = _remembered, (digest, wanted, vectors, seed, gap, kept)
    if known is not None and key in known:
        return known[key]
    found = _kept(digest, matrix, wanted, who) if kept else None
    if found is None:
        found = _computed(matrix, wanted, vectors, seed, name, who, gap)
        if kept:
            _keep(digest, found, model, name)
            found = Bases(found.U.astype(np.float32), found.S.astype(np.float32), found.Vt.astype(np.float32), who)
    if known is not None:
        known[key] = found
    return found


def _computed(matrix: np.ndarray, r: int, vectors: str, seed: int, name: str, who: Identity, gap: float) -> Bases:
    """`r` directions of `matrix`, in float64."""
    full = min(matrix.shape)
    if vectors == "random":
        left, right = (_orthonormal(side, r, f"random-{end}-{seed}") for side, end in zip(matrix.shape, "ui", strict=True))
        return Bases(left, np.ones(r), right.T, who)
    if vectors == "top":
        return _pinned(matrix, r, name, who, gap)
    everything = _pinned(matrix, full, name, who, gap)
    start = full - r if vectors == "bottom" else (full - r) // 2
    part = slice(start, start + r)
    U, S, Vt = (np.ascontiguousarray(one) for one in (everything.U[:, part], everything.S[part], everything.Vt[part]))
    return Bases(U, S, Vt, who)


def placement(values: np.ndarray, sigma: str) -> tuple[np.ndarray, np.ndarray]:
    """(s_in, s_out), the diagonals that scale the input and the output side, for singular `values`.

    ``input``: as in the authors' code (A = diag(S) V^T, B = U). ``output``: the other side. ``split``: the square root on both.
    ``none``: plain singular vectors. Where they sit changes what a gradient step on R weighs, not what can be reached.
    """
    ones = np.ones_like(values)
    if sigma == "input":
        return values, ones
    if sigma == "output":
        return ones, values
    if sigma == "split":
        return np.sqrt(values), np.sqrt(values)
    if sigma == "none":
        return ones, ones
    raise AdapterError(f"Unknown place for the singular values {sigma!r}; there are {', '.join(SIGMAS)}.")


def optimal_r(delta: np.ndarray, frozen: Bases, *, sigma: str = "input", scaling: float = 1.0) -> np.ndarray:
    """The R (r x r, float64) that minimises ``|delta - scaling * B R A|_F`` for a weight difference `delta` (out x in).

    Closed form, because U and V are orthonormal: R = diag(1/s_out) U^T delta V diag(1/s_in) / scaling. Directions with a
    vanishing singular value reach nothing and get zeros.
    """
    s_in, s_out = placement(np.asarray(frozen.S, dtype=np.float64), sigma)
    core = frozen.U.T.astype(np.float64) @ np.asarray(delta, dtype=np.float64) @ frozen.Vt.T.astype(np.float64)
    return _inverse(s_out)[:, None] * core * _inverse(s_in) / scaling


def delta_weight(R: np.ndarray, frozen: Bases, *, sigma: str = "input", scaling: float = 1.0) -> np.ndarray:
    """``dW = scaling * B R A`` (out x in), float64."""
    A, B = frozen.pair(sigma)
    return scaling * (B.astype(np.float64) @ np.asarray(R, dtype=np.float64) @ A.astype(np.float64))


def identify(matrix: np.ndarray) -> tuple[str, Identity]:
    """(sha256 of shape and float32 numbers, short digests) of a weight: what the disk cache and the proof go by."""
    import torch

    single = np.ascontiguousarray(matrix, dtype=np.float32)
    digest = hashlib.sha256(f"{single.shape}".encode())
    digest.update(single.data)
    tensor = torch.from_numpy(single)
    rounded = [zlib.crc32(tensor.to(dtype).view(torch.int16).numpy().data) for dtype in (torch.bfloat16, torch.float16)]
    return digest.hexdigest(), Identity(int.from_bytes(digest.digest()[:4], "little"), *rounded)


def groups(values: np.ndarray, gap: float = GROUP_GAP) -> list[slice]:
    """Runs of neighbours in descending `values` that are closer than `gap` * values[0]; every index is in exactly one."""
    if not len(values):
        return []
    breaks = np.flatnonzero(values[:-1] - values[1:] > gap * values[0]) + 1
    edges = [0, *breaks.tolist(), len(values)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _pinned(matrix: np.ndarray, r: int, name: str, who: Identity, gap: float) -> Bases:
    """The `r` top triples with every group of nearly equal singular values pinned; a group is computed whole, then cut."""
    full = min(matrix.shape)
    extra = min(full, r + 1)
    while True:
        U, S, Vt = truncated_svd(matrix, extra, name=name)
        if extra == full or S[r - 1] - S[-1] > gap * S[0]:
            break  # the group that holds index r - 1 ends before what was computed does
        extra = min(full, max(extra + 32, 2 * extra))
    V = Vt.T.copy()
    for group in groups(S, gap):
        if S[group.start] <= NULL * S[0] or S[0] == 0:
            U[:, group] = _nearest(U[:, group], group, "sign-left")
            V[:, group] = _nearest(V[:, group], group, "sign-right")
        elif group.stop - group.start > 1:
            columns = np.arange(group.start, group.stop)
            target = U[:, group].T @ gaussian(U.shape[0], columns, "sign-left")
            target += V[:, group].T @ gaussian(V.shape[0], columns, "sign-right")
            turn = _polar(target)
            U[:, group], V[:, group] = U[:, group] @ turn, V[:, group] @ turn
    return Bases(np.ascontiguousarray(U[:, :r]), S[:r], np.ascontiguousarray(V[:, :r].T), who)


def _nearest(side: np.ndarray, group: slice, salt: str) -> np.ndarray:
    """The orthonormal basis of span(`side`) nearest to fixed random vectors."""
    return side @ _polar(side.T @ gaussian(side.shape[0], np.arange(group.start, group.stop), salt))


def _polar(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix)
    return left @ right


def _orthonormal(rows: int, r: int, salt: str) -> np.ndarray:
    """The orthonormal factor (rows x r) of a fixed random matrix, R's diagonal positive so that it is unique."""
    q, upper = np.linalg.qr(gaussian(rows, np.arange(r), salt))
    return q * np.where(np.diag(upper) < 0, -1.0, 1.0)


def _inverse(values: np.ndarray) -> np.ndarray:
    floor = NULL * values.max(initial=0.0)
    return np.where(values > floor, 1.0 / np.where(values > floor, values, 1.0), 0.0)


def _kept(digest: str, matrix: np.ndarray, r: int, who: Identity) -> Bases | None:
    """The `r` top triples of `matrix` from the cache; None when they are not there, or are not its triples."""

    def decode(meta: dict, arrays: dict[str, np.ndarray]) -> Bases | None:
        found = Bases(arrays["U"], arrays["S"], arrays["Vt"], who)
        if found.rank < r:
            return None
        found = found.head(r)
        if not are_triples(matrix, found):
            raise Damaged("it does not hold the singular values and vectors of its weight")
        return found

    return _CACHE.load(_CACHE.key(digest), decode)


def _keep(digest: str, found: Bases, model: str, name: str) -> None:
    """Keeps `found` as float32."""
    arrays = {"U": found.U, "S": found.S, "Vt": found.Vt}
    single = {key: np.asarray(part, dtype=np.float32) for key, part in arrays.items()}
    _CACHE.save(_CACHE.key(digest), arrays=single, model=model, what=f"{name}, rank {found.rank}")


def are_triples(matrix: np.ndarray, found: Bases) -> bool:
    """Whether every (u_j, s_j, v_j) of `found` is a singular triple of `matrix` (out x in), as well as float32 vectors can be.

    One pass over the weight: with signs z_j, ``x = sum_j z_j u_j / s_j`` gives ``v_j^T W^T x = z_j`` where the triples are right, and
    ``z_j s_j / s'_j`` where s'_j stands for s_j. Triples that vanish beside the largest are left out; they reach nothing.
    """
    values = np.asarray(found.S, dtype=np.float64)
    if found.U.shape != (matrix.shape[0], len(values)) or found.Vt.shape != (len(values), matrix.shape[1]):
        return False
    if not (np.isfinite(values).all() and (values >= 0).all() and (np.diff(values) <= 0).all()):
        return False
    reached = values > CHECKED * values[0]
    U, Vt, values = found.U[:, reached], found.Vt[reached], values[reached]
    if not len(values):
        return not matrix.any()
    signs = np.where(gaussian(len(values), np.array([0]), "sign-left")[:, 0] < 0, -1.0, 1.0)
    combined = U.astype(np.float64) @ (signs / values)
    image = np.zeros(matrix.shape[1])
    step = max(1, (1 << 20) // matrix.shape[1])
    for start in range(0, matrix.shape[0], step):  # in float64, a few rows at a time
        image += combined[start : start + step] @ matrix[start : start + step].astype(np.float64)
    # float32 turns a vector by 6e-8, which the others' weights 1 / s_i carry over; a group pinned as a whole is off by its width.
    spread = np.sqrt(np.sum(np.square(1 / values)))
    tolerance = 1e-6 + 8 * (6e-8 * values + GROUP_GAP * values[0]) * spread
    return bool((np.abs(Vt.astype(np.float64) @ image - signs) <= tolerance).all())
