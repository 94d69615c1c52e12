"""The largest singular values of a matrix whose Gram matrix would be too large: a Krylov space of products with its strips.

For k values of a matrix with n rows and columns, the Gram matrix takes n^3 operations and n^2 numbers. A block Krylov space of it
(`largest_eigenvalues.krylov`) takes some twenty passes over the strips, 4 n^2 operations a vector, and as many vectors of n numbers
as it has dimensions. It is built in float32; what it finds is then taken to float64 by one more pass: the singular values of W V
with orthonormal Ritz vectors V, and the norm of the residual, which bounds their error whatever was rounded on the way (Parlett, The
Symmetric Eigenvalue Problem, 11.5). Knows nothing about models or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from loraxs_core.largest_eigenvalues import BLOCK, first_check, krylov

FROM = 8192  # rows of the Gram matrix; below this it is quicker to form it (benchmarks/spectra.py)
SPACE_BYTES = 512 << 20  # of the vectors that span the space
COMFORT = 30  # binary exponents of entries whose squares and sums stay far from over- and underflow in float32


class Work(Protocol):
    """Strips of a matrix along its longer side: b x n when `tall`, else n x b; with what is read so far (0 to 1)."""

    n: int  # the shorter side, and the longer one
    m: int
    tall: bool
    cancelled: Callable[[], bool]

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]: ...
    def largest(self, strip: np.ndarray) -> float: ...
    def report(self, fraction: float) -> None: ...


def largest(work: Work, top: int, tolerance: float) -> tuple[np.ndarray, float, float] | None:
    """(the `top` largest singular values, float64, descending; the bound on their error relative to the first; the sum of squares
    of all entries in float64).

    None where that does not pay, where entries are so large or small that float32 would over- or underflow, or where the bound
    is not within `tolerance`: the Gram matrix tells then. Raises as iterating `work` does.
    """
    products = _Products(work, top)
    if work.n < FROM or not products.comfortable:
        return None
    most = SPACE_BYTES // (4 * work.n)
    found = krylov(products, work.n, np.dtype(np.float32), top, tolerance / 2, most=most, cancelled=work.cancelled)
    if found is None:
        return None
    values, error = products.refined(found[1])
    return (values, error, products.energy) if error <= tolerance else None


class _Products:
    """x -> x W^T W (or x W W^T of a wide matrix) for a few rows x, a pass over the strips each.

    energy: the sum of squares of all entries. comfortable: whether float32 holds what is multiplied.
    """

    def __init__(self, work: Work, top: int):
        self.work, self.passes = work, 0
        self.expected = 4 + 1.5 * first_check(top, work.n) / BLOCK  # passes, for telling how far it is
        self.energy, peak = 0.0, 0.0
        for strip, fraction in work:
            peak = max(peak, work.largest(strip))
            wide = np.asarray(strip, dtype=np.float64).ravel()
            self.energy += float(np.vdot(wide, wide))
            self._report(fraction)
        self.passes = 1
        self.comfortable = peak > 0 and abs(np.frexp(peak)[1]) <= COMFORT

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Products in the precision of `rows`; sums over the strips in float64."""
        total = np.zeros(rows.shape)
        for strip, fraction in self.work:
            side = np.asarray(strip, rows.dtype)
            total += (rows @ side.T) @ side if self.work.tall else (rows @ side) @ side.T
            self._report(fraction)
        self.passes += 1
        return total.astype(rows.dtype)

    def refined(self, vectors: np.ndarray) -> tuple[np.ndarray, float]:
        """(singular values of W on the space that the rows of `vectors` span, in float64; the bound on their error relative to the
        first)."""
        basis = np.linalg.qr(vectors.T.astype(np.float64))[0].T
        image = self(basis)
        projected = image @ basis.T
        squares = np.maximum(np.linalg.eigvalsh((projected + projected.T) / 2)[::-1], 0.0)
        residual = float(np.linalg.norm(image - projected @ basis, 2))
        if squares[-1] <= 0:
            return np.sqrt(squares), np.inf
        rounding = (self.work.n + self.work.m) * float(np.finfo(np.float64).eps) * self.energy  # of the products in float64
        return np.sqrt(squares), (residual + rounding) / float(np.sqrt(squares[-1] * squares[0]))

    def _report(self, fraction: float) -> None:
        self.work.report(min(0.98, (self.passes + fraction) / self.expected))
