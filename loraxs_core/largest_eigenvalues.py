"""The largest eigenvalues of a symmetric matrix, without vectors, by block Lanczos with full reorthogonalisation.

For a few values of a large matrix, building a Krylov space takes a fraction of the arithmetic of a reduction to tridiagonal form
(Golub & Underwood, The block Lanczos method for computing eigenvalues, 1977). Spectra of weights fall slowly, so the space has to
be several times as large as the number of values: 64 of 4,096 take 740 dimensions, 256 take 1,250. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg

from loraxs_core.progress import Cancellation

Multiply = Callable[[np.ndarray], np.ndarray]  # rows x (k x n) -> x G (k x n), G the symmetric matrix
BLOCK = 32  # vectors multiplied at once: enough for matrix products to be fast, few enough for the space to stay small
MOST_SHARE = 1 / 32  # of all eigenvalues; when more are wanted, reducing the matrix is as cheap (measured at 4,096 rows)
SPACE = 2 / 5  # of the matrix's rows: the largest space tried
CLUSTER = 1e-4  # eigenvalues that differ by no more than this share count as one cluster


def largest(
    matrix: np.ndarray, count: int, tolerance: float, *, cancelled: Callable[[], bool] | None = None
) -> np.ndarray | None:
    """The `count` largest eigenvalues of a positive semidefinite `matrix` (n x n, whole, not changed), float64, descending.

    The square root of each is within `tolerance` of that of its eigenvalue, in units of the largest square root, by the norm of
    its residual. None where that is not reached in a space that pays, or where eigenvalues lie so close together that a block
    may have missed some: a Krylov space holds an eigenvalue at most `BLOCK` times. cancelled: asked at every step.
    Raises Cancellation when it says so.
    """
    found = krylov(lambda rows: rows @ matrix, matrix.shape[0], matrix.dtype, count, tolerance, cancelled=cancelled)
    return None if found is None else found[0]


def krylov(
    multiply: Multiply,
    size: int,
    dtype: np.dtype,
    count: int,
    tolerance: float,
    *,
    most: int | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """As `largest`, of a matrix of `size` rows that is known by its products alone: (eigenvalues, their Ritz vectors: count x n).

    dtype: of the vectors. most: the largest space allowed, where it is to be smaller than one that pays.
    """
    limit = min(int(SPACE * size), size if most is None else most) // BLOCK * BLOCK
    if count > MOST_SHARE * size or count + 2 * BLOCK > limit:
        return None
    basis = np.empty((limit, size), dtype)  # a vector a row
    projected = np.zeros((limit, limit))
    start = np.random.default_rng(0).standard_normal((size, BLOCK)).astype(dtype)
    candidate, coupling = scipy.linalg.qr(start, mode="economic", overwrite_a=True, check_finite=False)
    check_at = first_check(count, limit)
    for end in range(BLOCK, limit + 1, BLOCK):
        if cancelled and cancelled():
            raise Cancellation
        new = slice(end - BLOCK, end)
        basis[new] = candidate.T
        image = multiply(basis[new])
        for _ in range(2):  # twice is enough (Giraud, Langou & Rozloznik 2005)
            overlap = image @ basis[:end].T
            image -= overlap @ basis[:end]
            projected[:end, new] += overlap.T
        candidate, coupling = scipy.linalg.qr(image.T, mode="economic", overwrite_a=True, check_finite=False)
        scale = np.linalg.norm(projected[:BLOCK, :BLOCK], 2)
        if not np.abs(coupling.diagonal()).min() > 10 * np.finfo(dtype).eps * scale:
            return None  # the space is invariant: the matrix has few different eigenvalues
        if end < check_at:
            continue
        found, vectors, bound = _ritz(projected[:end, :end], coupling, count)
        if bound <= tolerance:
            return None if _clustered(found) else (found, vectors.T.astype(dtype) @ basis[:end])
        check_at = end + max(BLOCK, end // 8)
    return None


def first_check(count: int, limit: int) -> int:
    """The size of the space at which spectra like those of weights are about to converge."""
    return min(5 * count + 12 * BLOCK, limit // 2)


def _ritz(projected: np.ndarray, coupling: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The `count` largest Ritz values, descending, their vectors (space x count), and the bound on the error of the values' square
    roots (see `largest`)."""
    size = projected.shape[0]
    # Only the upper triangle was filled in; the rest is its mirror image.
    values, vectors = scipy.linalg.eigh(projected, lower=False, subset_by_index=[size - count, size - 1], check_finite=False)
    # |G x - theta x| of the Ritz vector x is exactly the coupling to the block that is not in the space yet.
    residuals = np.linalg.norm(coupling @ vectors[-BLOCK:], axis=0)
    if values[0] <= 0:
        return values[::-1], vectors[:, ::-1], np.inf
    return values[::-1], vectors[:, ::-1], float((residuals / np.sqrt(values * values[-1])).max())


def _clustered(values: np.ndarray) -> bool:
    """Whether more than half a block of neighbouring `values` (descending) are one cluster."""
    half = BLOCK // 2
    return bool(values.size > half and (values[half:] >= (1 - CLUSTER) * values[:-half]).any())
