"""All singular values of one matrix that is read in strips, without its singular vectors.

The singular values of W (out x in) are the square roots of the eigenvalues of its Gram matrix on the shorter side, n x n with
n = min(out, in). The Gram matrix is summed up from strips (BLAS ``syrk``), so W itself is never held, and its eigenvalues come
from `symmetric_eigenvalues`. Squaring costs accuracy at the lower end: an eigenvalue is off by some delta that depends on the
large ones, so a singular value is off by about delta / (2 sigma). Where that is more than promised, the subspace of the small
singular values is found by inverse iteration and W is read once more, projected on it: an error of that subspace enters only
as delta / sigma_edge with the singular value sigma_edge at its edge (Stewart & Sun, Matrix Perturbation Theory, V.4). Where too
many values are small (a rank-deficient matrix), the strips are reduced by QR instead, which squares nothing.

Errors promised, relative to sigma_1 and to a float64 SVD of the stored numbers:

- default: `TOLERANCE`, from delta = GRAM_ULPS * eps * sigma_1^2.
- fast: `FAST_TOLERANCE`, from delta = FAST_ULPS * eps32 * sigma_1^2: summed and reduced in float32, where that saves time; where
  too many values are too small for it, the default is used.
- top: the largest few in float32, by a Krylov space of the Gram matrix where that is cheaper than reducing it; of large
  matrices without forming it (`strip_products`).

Knows nothing about models or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from loraxs_core import largest_eigenvalues, strip_products, symmetric_eigenvalues
from loraxs_core.errors import NonFiniteWeights
from loraxs_core.openblas import LETTERS, add_gram, cholesky_solver
from loraxs_core.progress import Cancellation
from loraxs_core.strips import Product, Strips

TOLERANCE = 1e-9
FAST_TOLERANCE = 1e-4
GRAM_ULPS = 40  # measured: at most 29 on real weights and random matrices (tests, benchmarks/spectra.py)
FAST_ULPS = 5  # of float32; measured: at most 3.9 likewise
# Rows of the Gram matrix from which float32 saves enough to be worth its error: of matrices twice as long as wide, which
# hardly ever have small values, and of any.
FAST_FROM, FAST_ANY_FROM = 640, 1800
TILE = 256  # rows and columns copied at a time, so that both tiles stay in the cache
STRIP_BYTES = 16 << 20  # of a strip in float64
_COMFORT = {"d": 200, "s": 30}  # binary exponents of entries whose squares and sums stay far from over- and underflow
_INVERSE_STEPS = 4


class ArrayStrips:
    """A matrix in memory, as `Strips`."""

    def __init__(self, matrix: np.ndarray):
        self.matrix = matrix
        self.shape = matrix.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.matrix[start:stop]

    def columns(self, start: int, stop: int) -> np.ndarray:
        return self.matrix[:, start:stop]


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix.

    values: descending, float64; all min(out, in) of them, or the largest ones asked for. energy: the sum of squares of all
    (the squared Frobenius norm) in units of sigma_1 squared, so that it neither over- nor underflows; 0 for the zero matrix.
    error: bound on the error of every value, relative to sigma_1.
    """

    values: np.ndarray
    energy: float
    error: float


def spectrum(
    matrix: Strips | np.ndarray,
    *,
    fast: bool = False,
    top: int | None = None,
    name: str = "the matrix",
    step: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Spectrum:
    """All singular values of `matrix` (out x in), each within `TOLERANCE` * sigma_1.

    fast: `FAST_TOLERANCE` instead, in float32 arithmetic where that saves time. top: only this many, the largest, in float32
    arithmetic within the error that the result states; its energy is still that of the whole matrix, in float64. step: called
    with the fraction of the work done, between 0 and 1. cancelled: asked between strips and stages. Raises NonFiniteWeights
    naming `name` when the matrix holds NaN or infinities, Cancellation when asked to stop.
    """
    strips = ArrayStrips(matrix) if isinstance(matrix, np.ndarray) else matrix
    work = _Work(strips, name, step, cancelled)
    if isinstance(strips, Product):
        return _of_product(work, strips, top)
    if top is not None and work.n > FAST_FROM:
        return _largest(work, top)
    if fast and work.n > (FAST_FROM if work.m >= 2 * work.n else FAST_ANY_FROM):
        result = _all(work, np.dtype(np.float32), FAST_TOLERANCE)
        if result is not None:
            return result
    result = _all(work, np.dtype(np.float64), TOLERANCE)
    return Spectrum(result.values[:top], result.energy, result.error)


def _largest(work: _Work, top: int) -> Spectrum:
    """The `top` largest values from products with the strips, or from the Gram matrix in float32."""
    quick = strip_products.largest(work, top, FAST_TOLERANCE) if work.n >= strip_products.FROM else None
    if quick is not None:
        roots, error, energy = quick
        work.report(1.0)
        return Spectrum(roots, energy / roots[0] ** 2, error)
    gram = _gram(work, np.dtype(np.float32))
    gram.keep()
    found = largest_eigenvalues.largest(gram.matrix, top, FAST_TOLERANCE / 2, cancelled=work.cancelled)
    squares, error = (gram.eigenvalues()[:top], 0.0) if found is None else (found, FAST_TOLERANCE / 2)
    roots = np.sqrt(squares)
    return _finished(work, gram, roots, gram.root_error(roots) + error)


def _all(work: _Work, dtype: np.dtype, tolerance: float) -> Spectrum | None:
    """All values from the Gram matrix in `dtype`, small ones mended; None where float32 cannot keep to `tolerance`."""
    gram = _gram(work, dtype)
    if gram.single:
        gram.keep()
    roots = np.sqrt(gram.eigenvalues())
    error = gram.root_error(roots)
    if error > tolerance:
        mended = _with_small_values(work, roots, gram, tolerance)
        if mended is None and gram.single:
            return None
        del gram.matrix
        roots, error = mended or _by_qr(work, gram.exponent)
    return _finished(work, gram, roots, error)


def _finished(work: _Work, gram: _Gram, roots: np.ndarray, error: float) -> Spectrum:
    work.report(1.0)
    energy = gram.energy / roots[0] ** 2 if roots[0] else 0.0
    return Spectrum(np.ldexp(roots, gram.exponent), energy, error)


class _Work:
    """Reads the strips of one matrix along its longer side, checks them, and keeps its caller informed."""

    def __init__(
        self,
        strips: Strips,
        name: str,
        step: Callable[[float], None] | None,
        cancelled: Callable[[], bool] | None,
    ):
        self.strips, self.name, self.done = strips, name, 0.0
        self.step = step or (lambda fraction: None)
        self.cancelled = cancelled or (lambda: False)
        out, into = strips.shape
        self.tall = out >= into
        self.n, self.m = min(out, into), max(out, into)
        # n^2 m operations for the Gram matrix; 4/3 n^3 for its eigenvalues, half of them at half the speed.
        self.gram_share = self.m / (self.m + 2 * self.n)

    def report(self, fraction: float) -> None:
        """Raises Cancellation when asked to stop. What is told never falls, also where a matrix is read again."""
        if self.cancelled():
            raise Cancellation
        self.done = max(self.done, fraction)
        self.step(self.done)

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        """(strip: b x n when tall, n x b when wide; fraction read). Raises NonFiniteWeights."""
        height = max(1, min(self.m, STRIP_BYTES // (8 * self.n)))
        read = self.strips.rows if self.tall else self.strips.columns
        for start in range(0, self.m, height):
            if self.cancelled():
                raise Cancellation
            yield read(start, min(start + height, self.m)), min(1.0, (start + height) / self.m)

    def largest(self, strip: np.ndarray) -> float:
        """The largest magnitude in a strip. Raises NonFiniteWeights, since NaN and infinities end up in it."""
        peak = max(float(strip.max()), -float(strip.min()))
        if not math.isfinite(peak):
            raise NonFiniteWeights(f"{self.name} holds NaN or infinite numbers; the checkpoint is damaged, download it again.")
        return peak


@dataclass
class _Gram:
    """The lower triangle of 4^-exponent times the Gram matrix, Fortran order, and its trace in float64.

    The two-stage reduction reads and overwrites that triangle alone, so the other one can keep a copy of it (`keep`, `again`). In float64,
    where few matrices need it again, summing it up again for those is cheaper than copying all.
    """

    matrix: np.ndarray
    exponent: int = 0
    energy: float = 0.0
    diagonal: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.dtype = self.matrix.dtype
        self.single = self.dtype == np.float32
        self.eps = float(np.finfo(self.dtype).eps)
        self.rows = self.matrix.shape[0]
        self.delta = (FAST_ULPS if self.single else GRAM_ULPS) * self.eps

    def keep(self) -> None:
        """Makes the matrix whole: its upper triangle a copy of the lower one."""
        self.diagonal = self.matrix.diagonal().copy()
        mirror(self.matrix)

    def again(self) -> None:
        """Makes the matrix what it was when it was kept."""
        self.matrix[np.diag_indices(self.rows)] = self.diagonal
        mirror(self.matrix.T)

    def eigenvalues(self) -> np.ndarray:
        """All of them, descending, none negative, float64. Overwrites the lower triangle."""
        return np.maximum(symmetric_eigenvalues.eigenvalues(self.matrix)[::-1].astype(np.float64), 0.0)

    def root_error(self, values: np.ndarray) -> float:
        """Bound on the error of `values`, roots of its eigenvalues, relative to the largest.

        delta / (2 sigma), at most sqrt(delta); at least half the error of the largest eigenvalue itself, which in float32 is off
        by 2 sqrt(n) units in the last place (measured).
        """
        if values[0] == 0:
            return 0.0
        smallest = float(values[-1] / values[0])
        largest = 2.5 * self.eps * math.sqrt(self.rows) if self.single else self.delta
        return max(self.delta / (2 * smallest) if smallest**2 > self.delta else math.sqrt(self.delta), largest / 2)


def _gram(work: _Work, dtype: np.dtype) -> _Gram:
    """Sums up the Gram matrix on the shorter side; entries are scaled by a power of two where squares would overflow."""
    letter = LETTERS[dtype]
    gram = _Gram(np.zeros((work.n, work.n), dtype, order="F"))
    scaled = False
    for strip, fraction in work:
        peak = work.largest(strip)
        if peak:
            top = math.frexp(peak)[1]
            if abs(top - gram.exponent) > _COMFORT[letter] and (top > gram.exponent or not scaled):
                gram.energy *= 0.0 if not scaled else math.ldexp(1.0, max(2 * (gram.exponent - top), -1074))
                gram.matrix *= dtype.type(math.ldexp(1.0, max(2 * (gram.exponent - top), -1074)) if scaled else 0.0)
                gram.exponent = top
            scaled = True
        wide = np.asarray(strip, dtype=np.float64, order="C")
        if gram.exponent:
            wide = np.ldexp(wide, -gram.exponent)
        gram.energy += float(np.vdot(wide, wide))
        side = wide if letter == "d" else wide.astype(np.float32) if gram.exponent else np.asarray(strip, np.float32, order="C")
        gram.matrix = add_gram(side, gram.matrix, tall=work.tall)
        work.report(work.gram_share * fraction)
    return gram


def mirror(matrix: np.ndarray) -> None:
    """Copies the lower triangle of a square matrix into its upper one, in place."""
    size = matrix.shape[0]
    for start in range(0, size, TILE):
        corner = matrix[start : start + TILE, start : start + TILE]
        corner[...] = np.tril(corner) + np.tril(corner, -1).T
        for below in range(start + TILE, size, TILE):
            matrix[start : start + TILE, below : below + TILE] = matrix[below : below + TILE, start : start + TILE].T


def _with_small_values(work: _Work, values: np.ndarray, gram: _Gram, tolerance: float) -> tuple[np.ndarray, float] | None:
    """`values` with those that squaring lost computed again, and the bound on the error of all; None where they are too many."""
    cut = max(gram.delta / (2 * tolerance), math.sqrt(gram.delta))  # relative to the largest; below it the error is too large
    doubtful = int(np.count_nonzero(values < cut * values[0]))
    block = int(np.count_nonzero(values < 4 * cut * values[0])) + 4
    if not 0 < doubtful <= block <= work.n // 4:
        return None
    if gram.diagonal is None:
        del gram.matrix
        gram.matrix = _gram(work, gram.dtype).matrix
    else:
        gram.again()
    basis = _small_subspace(gram.matrix, block, 4 * gram.delta * values[0] ** 2)
    if basis is None:
        return None
    small = np.linalg.svd(_projected(work, basis, gram.exponent), compute_uv=False)
    kept = values[: work.n - doubtful]
    error = max(gram.root_error(kept), gram.delta / (2 * cut))
    return np.sort(np.concatenate([kept, small[-doubtful:]]))[::-1], error


def _small_subspace(matrix: np.ndarray, block: int, shift: float) -> np.ndarray | None:
    """Orthonormal n x block basis of the eigenvectors of `matrix` (lower triangle, overwritten) with the smallest eigenvalues.

    Inverse iteration with the Cholesky factor of the matrix plus `shift`; None when that is not positive definite.
    """
    matrix[np.diag_indices_from(matrix)] += matrix.dtype.type(shift)
    solve = cholesky_solver(matrix)
    if solve is None:
        return None
    basis = np.random.default_rng(0).standard_normal((matrix.shape[0], block))
    for _ in range(_INVERSE_STEPS):
        basis = solve(np.asfortranarray(basis, dtype=matrix.dtype))
        if not np.isfinite(basis).all():
            return None
        basis = np.linalg.qr(basis.astype(np.float64))[0]
    return basis


def _projected(work: _Work, basis: np.ndarray, exponent: int) -> np.ndarray:
    """2^-exponent W restricted to `basis` (n x block) on the shorter side: m x block."""
    parts = []
    for strip, _ in work:
        side = np.ldexp(np.asarray(strip, np.float64), -exponent)
        parts.append(side @ basis if work.tall else side.T @ basis)
    return np.concatenate(parts)


def _by_qr(work: _Work, exponent: int) -> tuple[np.ndarray, float]:
    """Singular values of 2^-exponent W in float64 by QR of its strips and an SVD of the triangular factor.

    Backward stable throughout, and several times slower than the Gram matrix.
    """
    triangle = np.zeros((work.n, work.n), order="F")
    for strip, _ in work:
        side = np.ldexp(np.asarray(strip if work.tall else strip.T, np.float64), -exponent)
        triangle = lapack.dtpqrt(0, min(32, work.n), triangle, np.asfortranarray(side), overwrite_a=1, overwrite_b=1)[0]
    values = scipy.linalg.svdvals(np.triu(triangle), overwrite_a=True, check_finite=False)
    return values, work.n * float(np.finfo(np.float64).eps)


def _of_product(work: _Work, product: Product, top: int | None) -> Spectrum:
    """The spectrum of B A from the triangular factors of both: B A is never formed."""
    triangles = []
    for factor in (product.factors[0], product.factors[1].T):
        work.largest(factor)
        triangles.append(np.linalg.qr(np.asarray(factor, np.float64), mode="r"))
    values = np.zeros(work.n)
    found = scipy.linalg.svdvals(triangles[0] @ triangles[1].T, check_finite=False)[: work.n]
    values[: found.size] = found
    work.report(1.0)
    if values[0] == 0:
        return Spectrum(values[:top], 0.0, 0.0)
    # Forming the product of the triangles rounds each of its entries relative to the norms of the factors.
    scale = float(np.linalg.norm(triangles[0]) * np.linalg.norm(triangles[1])) / values[0]
    error = work.n * float(np.finfo(np.float64).eps) * scale
    return Spectrum(values[:top], float(np.sum(np.square(values / values[0]))), error)
