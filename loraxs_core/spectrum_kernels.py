"""All singular values of one matrix that is read in strips, without its singular vectors.

The spectrum of W (out x in) is the square root of the eigenvalues of its Gram matrix on the shorter side, n x n with
n = min(out, in). The Gram matrix is accumulated from strips (BLAS ``syrk``), so the matrix itself is never held, and reduced
to tridiagonal form. That squares the condition number: an eigenvalue is off by a few units in the last place of the
*largest* one, so a singular value sigma_i is off by about

    error_i = GRAM_ULPS * eps * sigma_1^2 / (2 * sigma_i)

(Golub & Van Loan, Matrix Computations, 8.6.1). Where this exceeds `TOLERANCE` the matrix is read again and its triangular
factor R (from QR, which does not square anything) gives the small singular values; so every value returned by the default
precision is within `TOLERANCE` * sigma_1 of the truth. Knows nothing about models or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg
from scipy.linalg import blas, lapack

from loraxs_core.errors import NonFiniteWeights
from loraxs_core.progress import Cancellation

TOLERANCE = 1e-9  # promised error of a singular value, relative to sigma_1, in the default precision
GRAM_ULPS = 40  # measured: at most 29 on real weights and random matrices (tests, benchmarks/spectra.py)
STRIP_BYTES = 16 << 20  # a strip in working precision
_COMFORT = {"d": 200, "s": 30}  # binary exponents of entries whose squares and sums stay far from over- and underflow


class Strips(Protocol):
    """A matrix that can be read a few rows or a few columns at a time, as float32 or float64."""

    shape: tuple[int, int]

    def rows(self, start: int, stop: int) -> np.ndarray: ...

    def columns(self, start: int, stop: int) -> np.ndarray: ...


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

    values: descending, float64; all min(out, in) of them. energy: their sum of squares (the squared Frobenius norm) in units
    of sigma_1 squared, so that it neither over- nor underflows; 0 for the zero matrix. error: bound on the error of every
    value, relative to sigma_1.
    """

    values: np.ndarray
    energy: float
    error: float


def spectrum(
    matrix: Strips | np.ndarray,
    *,
    name: str = "the matrix",
    step: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Spectrum:
    """All singular values of `matrix` (out x in).

    step: called with the fraction of the work done, between 0 and 1. cancelled: asked between strips and stages.
    Raises NonFiniteWeights naming `name` when it holds NaN or infinities, Cancellation when asked to stop.
    """
    strips = ArrayStrips(matrix) if isinstance(matrix, np.ndarray) else matrix
    work = _Work(strips, name, step or (lambda fraction: None), cancelled or (lambda: False))
    gram = _gram(work)
    eigenvalues = _eigenvalues(gram.matrix)
    work.report(0.95)
    values = np.sqrt(np.maximum(eigenvalues[::-1], 0.0))
    error = gram_error(values)
    if error > TOLERANCE:
        values, error = _exact(work, gram.exponent)
    energy = float(np.sum(np.square(values / values[0]))) if values[0] else 0.0
    work.report(1.0)
    return Spectrum(np.ldexp(values, gram.exponent), energy, error)


def gram_error(values: np.ndarray, eps: float = np.finfo(np.float64).eps) -> float:
    """Bound on the error of any singular value in `values` (descending) that came from a Gram matrix, relative to sigma_1.

    An eigenvalue is within GRAM_ULPS * eps of the truth relative to the largest; the square root of a small one magnifies it.
    """
    if values[0] == 0:
        return 0.0
    relative = max(float(values[-1] / values[0]), math.sqrt(GRAM_ULPS * eps))
    return GRAM_ULPS * eps / (2 * relative)


class _Work:
    """Reads the strips of one matrix along its longer side, checks them, and keeps its caller informed."""

    def __init__(self, strips: Strips, name: str, step: Callable[[float], None], cancelled: Callable[[], bool]):
        self.strips, self.name, self.step, self.cancelled = strips, name, step, cancelled
        out, into = strips.shape
        self.tall = out >= into
        self.n, self.m = min(out, into), max(out, into)

    def report(self, fraction: float) -> None:
        if self.cancelled():
            raise Cancellation
        self.step(fraction)

    def __iter__(self) -> Iterator[tuple[np.ndarray, float, float]]:
        """(strip as stored on the shorter side: b x n when tall, n x b when wide; its largest magnitude; fraction read)."""
        height = max(1, min(self.m, STRIP_BYTES // (8 * self.n)))
        read = self.strips.rows if self.tall else self.strips.columns
        for start in range(0, self.m, height):
            strip = read(start, min(start + height, self.m))
            peak = max(float(strip.max()), -float(strip.min()))
            if not math.isfinite(peak):
                raise NonFiniteWeights(
                    f"{self.name} holds NaN or infinite numbers; the checkpoint is damaged, download it again."
                )
            yield strip, peak, min(1.0, (start + height) / self.m)


@dataclass
class _Gram:
    """The lower triangle of 4^-exponent times the Gram matrix, Fortran order."""

    matrix: np.ndarray
    exponent: int


def _gram(work: _Work) -> _Gram:
    """Accumulates the Gram matrix on the shorter side; entries are scaled by a power of two where squares would overflow."""
    gram = _Gram(np.zeros((work.n, work.n), order="F"), 0)
    scaled = False
    for strip, peak, fraction in work:
        top = math.frexp(peak)[1] if peak else None
        if top is not None and abs(top - gram.exponent) > _COMFORT["d"] and (not scaled or top > gram.exponent):
            gram.matrix *= math.ldexp(1.0, max(2 * (gram.exponent - top), -1074)) if scaled else 1.0
            gram.exponent = top
        scaled = scaled or top is not None
        # BLAS is Fortran: a C-ordered b x n strip is n x b there, whose product with its transpose is strip.T @ strip.
        side = np.asarray(strip, dtype=np.float64, order="C")
        if gram.exponent:
            side = np.ldexp(side, -gram.exponent)
        gram.matrix = blas.dsyrk(1.0, side.T, beta=1.0, c=gram.matrix, trans=not work.tall, lower=1, overwrite_c=1)
        work.report(0.6 * fraction)
    return gram


def _eigenvalues(gram: np.ndarray) -> np.ndarray:
    """Ascending eigenvalues of a symmetric matrix given by its lower triangle, which is overwritten."""
    return scipy.linalg.eigh(gram, lower=True, eigvals_only=True, overwrite_a=True, check_finite=False)


def _exact(work: _Work, exponent: int) -> tuple[np.ndarray, float]:
    """Singular values of 2^-exponent W by QR of its strips and an SVD of the triangular factor: backward stable throughout."""
    factor = np.zeros((0, work.n))
    for strip, _, _ in work:
        side = strip if work.tall else strip.T
        stacked = np.vstack([factor, np.ldexp(side.astype(np.float64), -exponent)])
        packed = lapack.dgeqrf(np.asfortranarray(stacked), overwrite_a=1)[0]
        factor = np.triu(packed[: work.n])
        work.report(0.95)
    values = scipy.linalg.svdvals(factor, overwrite_a=True, check_finite=False)
    return values, work.n * np.finfo(np.float64).eps
