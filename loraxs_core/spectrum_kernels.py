"""All singular values of one matrix that is read in strips, without its singular vectors.

The singular values of W (out x in) are the square roots of the eigenvalues of its Gram matrix on the shorter side, n x n with
n = min(out, in). The Gram matrix is summed up from strips (BLAS ``syrk``), so W itself is never held, and its eigenvalues come
from `symmetric_eigenvalues`. Squaring costs accuracy at the lower end: an eigenvalue is off by some delta that depends on the
large ones, so a singular value is off by about delta / (2 sigma). Where that is more than promised, the subspace of the small
singular values is found by inverse iteration and W is read once more, projected on it: an error of that subspace enters only
as delta / sigma_edge with the singular value sigma_edge at its edge (Stewart & Sun, Matrix Perturbation Theory, V.4). Where too
many values are small (a rank-deficient matrix), the strips are reduced by QR instead, which squares nothing.

Errors promised, relative to sigma_1 and to a float64 SVD of the stored numbers:

- default: `TOLERANCE`, from the worst-case bound delta = GRAM_ULPS * eps * sigma_1^2.
- fast: `FAST_TOLERANCE`, from a float32 Gram matrix, whose rounding errors average out:
  delta = FAST_ULPS * eps32 * ||sigma^2|| / sqrt(n) for the small ones, measured, not proven. It is reduced in float64, and in
  float32 only where no value comes out small. Where too many values are small for inverse iteration they are left at
  sqrt(delta), at most twice the tolerance, and the result says so.

Knows nothing about models or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.linalg import blas, lapack

from loraxs_core import symmetric_eigenvalues
from loraxs_core.errors import NonFiniteWeights
from loraxs_core.progress import Cancellation
from loraxs_core.strips import Product, Strips

TOLERANCE = 1e-9
FAST_TOLERANCE = 1e-4
GRAM_ULPS = 40  # measured: at most 29 on real weights and random matrices (tests, benchmarks/spectra.py)
FAST_ULPS = 8  # of the float32 Gram matrix; measured: at most 6.6 likewise
REDUCTION_ULPS = 5  # of the reduction in float32, of sigma_1^2; measured: at most 3.9 likewise
FAST_FROM = 640  # rows of the Gram matrix; below this float32 saves nothing worth its error
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

    fast: float32 arithmetic and `FAST_TOLERANCE` instead. top: only this many, the largest, in float32 arithmetic within the
    error that the result states; its energy is still that of the whole matrix, in float64. step: called with the fraction of
    the work done, between 0 and 1. cancelled: asked between strips and stages. Raises NonFiniteWeights naming `name` when the
    matrix holds NaN or infinities, Cancellation when asked to stop.
    """
    strips = ArrayStrips(matrix) if isinstance(matrix, np.ndarray) else matrix
    single = (fast or top is not None) and min(strips.shape) > FAST_FROM
    work = _Work(strips, name, np.dtype(np.float32 if single else np.float64), step, cancelled)
    if isinstance(strips, Product):
        values, energy, error = _of_product(work, strips)
        return Spectrum(values[:top], energy, error)
    gram = _gram(work)
    values, error = _values(work, gram, top)
    if top is None and error > (FAST_TOLERANCE if single else TOLERANCE):
        work.report(0.9)
        values, error = _with_small_values(work, values, gram, error)
    work.report(1.0)
    energy = gram.energy / values[0] ** 2 if values[0] else 0.0
    return Spectrum(np.ldexp(values, gram.exponent), energy, error)


class _Work:
    """Reads the strips of one matrix along its longer side, checks them, and keeps its caller informed."""

    def __init__(
        self,
        strips: Strips,
        name: str,
        dtype: np.dtype,
        step: Callable[[float], None] | None,
        cancelled: Callable[[], bool] | None,
    ):
        self.strips, self.name, self.dtype = strips, name, dtype
        self.step = step or (lambda fraction: None)
        self.cancelled = cancelled or (lambda: False)
        out, into = strips.shape
        self.tall = out >= into
        self.n, self.m = min(out, into), max(out, into)
        # n^2 m operations for the Gram matrix; 4/3 n^3 for its eigenvalues, half of them at half the speed.
        self.gram_share = self.m / (self.m + 2 * self.n)

    def report(self, fraction: float) -> None:
        if self.cancelled():
            raise Cancellation
        self.step(fraction)

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

    intact: whether `matrix` still holds it, which a reduction overwrites.
    """

    matrix: np.ndarray
    exponent: int = 0
    energy: float = 0.0
    intact: bool = True

    @property
    def eps(self) -> float:
        return float(np.finfo(self.matrix.dtype).eps)

    def uncertainty(self, values: np.ndarray) -> float:
        """delta: how far off its eigenvalues are, in units of the largest; `values` are their roots, descending."""
        if self.matrix.dtype == np.float64 or values[0] == 0:
            return GRAM_ULPS * self.eps
        relative = np.square(values / values[0])
        return FAST_ULPS * self.eps * float(np.linalg.norm(relative)) / math.sqrt(values.size)


def _gram(work: _Work) -> _Gram:
    """Sums up the Gram matrix on the shorter side; entries are scaled by a power of two where squares would overflow."""
    letter = work.dtype.char.replace("f", "s")
    syrk = blas.dsyrk if letter == "d" else blas.ssyrk
    gram = _Gram(np.zeros((work.n, work.n), work.dtype, order="F"))
    scaled = False
    for strip, fraction in work:
        peak = work.largest(strip)
        if peak:
            top = math.frexp(peak)[1]
            if abs(top - gram.exponent) > _COMFORT[letter] and (top > gram.exponent or not scaled):
                gram.energy *= 0.0 if not scaled else math.ldexp(1.0, max(2 * (gram.exponent - top), -1074))
                gram.matrix *= work.dtype.type(math.ldexp(1.0, max(2 * (gram.exponent - top), -1074)) if scaled else 0.0)
                gram.exponent = top
            scaled = True
        wide = np.asarray(strip, dtype=np.float64, order="C")
        if gram.exponent:
            wide = np.ldexp(wide, -gram.exponent)
        gram.energy += float(np.vdot(wide, wide))
        side = wide if letter == "d" else wide.astype(np.float32) if gram.exponent else np.asarray(strip, np.float32, order="C")
        # BLAS is Fortran: a C-ordered b x n strip is n x b there, and its product with its transpose is strip.T @ strip.
        gram.matrix = syrk(1.0, side.T, beta=1.0, c=gram.matrix, trans=not work.tall, lower=1, overwrite_c=1)
        work.report(work.gram_share * fraction)
    return gram


def _values(work: _Work, gram: _Gram, top: int | None) -> tuple[np.ndarray, float]:
    """The `top` largest singular values (all by default), descending, and the bound on their error relative to the largest."""
    if gram.matrix.dtype == np.float64:
        values = _roots(_overwriting(gram))
        return values[:top], _root_error(gram, gram.uncertainty(values), values[:top])
    if top is not None or work.m >= 2 * work.n:
        values = _roots(_overwriting(gram))
        error = _root_error(gram, REDUCTION_ULPS * gram.eps, values[:top])
        if top is not None or error <= FAST_TOLERANCE:
            return values[:top], error
        gram.matrix, gram.intact = _gram(work).matrix, True
    values = _roots(symmetric_eigenvalues.eigenvalues(gram.matrix.astype(np.float64, order="F")))
    return values, _root_error(gram, gram.uncertainty(values), values)


def _overwriting(gram: _Gram) -> np.ndarray:
    """Eigenvalues of a Gram matrix in its own precision, which costs the matrix."""
    gram.intact = False
    return symmetric_eigenvalues.eigenvalues(gram.matrix)


def _roots(eigenvalues: np.ndarray) -> np.ndarray:
    """Their square roots, descending, float64; 0 for those that rounding made negative."""
    return np.sqrt(np.maximum(eigenvalues[::-1].astype(np.float64), 0.0))


def _root_error(gram: _Gram, delta: float, values: np.ndarray) -> float:
    """Bound on the error of `values`, roots of eigenvalues that are off by delta, all relative to the largest.

    delta / (2 sigma), at most sqrt(delta); at least half the error of the largest eigenvalue itself, which in float32 is off by
    2 sqrt(n) units in the last place (measured).
    """
    if values[0] == 0:
        return 0.0
    smallest = float(values[-1] / values[0])
    largest = delta if gram.matrix.dtype == np.float64 else 2.5 * gram.eps * math.sqrt(gram.matrix.shape[0])
    return max(delta / (2 * smallest) if smallest**2 > delta else math.sqrt(delta), largest / 2)


def _with_small_values(work: _Work, values: np.ndarray, gram: _Gram, error: float) -> tuple[np.ndarray, float]:
    """`values`, off by up to `error`, with those that squaring lost computed again, and the bound on the error of all."""
    single = gram.matrix.dtype == np.float32
    tolerance = FAST_TOLERANCE if single else TOLERANCE
    delta = gram.uncertainty(values)
    cut = max(delta / (2 * tolerance), math.sqrt(delta))  # relative to the largest; below it `_root_error` is too large
    doubtful = int(np.count_nonzero(values < cut * values[0]))
    block = int(np.count_nonzero(values < 4 * cut * values[0])) + 4
    if 0 < doubtful <= block <= work.n // 4:
        matrix = gram.matrix if gram.intact else _gram(work).matrix
        basis = _small_subspace(matrix, block, 4 * delta * values[0] ** 2)
        if basis is not None:
            small = scipy.linalg.svdvals(_projected(work, basis, gram.exponent), check_finite=False)
            kept = values[: work.n - doubtful]
            error = max(_root_error(gram, delta, kept), delta / (2 * cut))
            return np.sort(np.concatenate([kept, small[-doubtful:]]))[::-1], error
    return (values, error) if single else _by_qr(work, gram.exponent)


def _small_subspace(matrix: np.ndarray, block: int, shift: float) -> np.ndarray | None:
    """Orthonormal n x block basis of the eigenvectors of `matrix` (lower triangle, overwritten) with the smallest eigenvalues.

    Inverse iteration with the Cholesky factor of the matrix plus `shift`; None when that is not positive definite.
    """
    factorise, solve = lapack.get_lapack_funcs(("potrf", "potrs"), (matrix,))
    matrix[np.diag_indices_from(matrix)] += matrix.dtype.type(shift)
    factor, info = factorise(matrix, lower=1, overwrite_a=1, clean=0)
    if info != 0:
        return None
    basis = np.random.default_rng(0).standard_normal((matrix.shape[0], block))
    for _ in range(_INVERSE_STEPS):
        basis, info = solve(factor, np.asfortranarray(basis, dtype=matrix.dtype), lower=1, overwrite_b=1)
        if info != 0 or not np.isfinite(basis).all():
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


def _of_product(work: _Work, product: Product) -> tuple[np.ndarray, float, float]:
    """Singular values of B A, its relative energy and its error, from the triangular factors of both: B A is never formed."""
    triangles = []
    for factor in (product.factors[0], product.factors[1].T):
        work.largest(factor)
        triangles.append(np.linalg.qr(np.asarray(factor, np.float64), mode="r"))
    core = triangles[0] @ triangles[1].T
    values = np.zeros(work.n)
    found = scipy.linalg.svdvals(core, check_finite=False)[: work.n]
    values[: found.size] = found
    work.report(1.0)
    energy = float(np.sum(np.square(values / values[0]))) if values[0] else 0.0
    # Forming the core rounds each of its entries relative to the norms of the factors.
    scale = float(np.linalg.norm(triangles[0]) * np.linalg.norm(triangles[1]))
    return values, energy, work.n * float(np.finfo(np.float64).eps) * (scale / values[0] if values[0] else 1.0)
