"""A few of the largest eigenvalues of a symmetric matrix with their vectors, in float64.

LAPACK's routine for a part of the spectrum (``dsyevr`` with a range of indices) finds the wanted values by bisection, which takes
5 of the 11.7 ms of 64 of 384. Here all values come from the root-free QR method (``dsterf``), which is quicker than bisection for a
few, and the vectors from inverse iteration as there (``dstein``). Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

MOST_SHARE = 1 / 3  # of the matrix's rows; for more vectors divide and conquer finds all of them as quickly


def leading_eigenpairs(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(the `count` largest eigenvalues, ascending; their vectors, n x count, orthonormal) of the symmetric `matrix` (n x n, float64).

    Only the lower triangle is read; a matrix in Fortran order is overwritten. Values are within a modest multiple of eps times the
    largest magnitude. Raises numpy.linalg.LinAlgError where LAPACK does not converge.
    """
    size = matrix.shape[0]
    if count > MOST_SHARE * size:
        values, vectors = scipy.linalg.eigh(matrix, lower=True, overwrite_a=True, check_finite=False)
        return values[-count:], vectors[:, -count:]
    work = int(lapack.dsytrd_lwork(size, lower=1)[0])
    reflectors, diagonal, beside, factors, _ = lapack.dsytrd(matrix, lower=1, lwork=work, overwrite_a=1)
    largest = max(np.abs(diagonal).max(), np.abs(beside).max())
    unit = 2.0 ** np.frexp(largest)[1]  # so that squares of entries neither over- nor underflow, and nothing is rounded
    values, vectors = _of_tridiagonal(diagonal / unit, beside / unit, count)
    # The reflectors of Q lie below the subdiagonal; the first row is not touched by any.
    below = np.asfortranarray(reflectors[1:, :-1])
    turned, _, _ = lapack.dormqr("L", "N", below, factors, np.asfortranarray(vectors[1:]), lwork=64 * size, overwrite_c=1)
    vectors[1:] = turned
    return values * unit, vectors


def _of_tridiagonal(diagonal: np.ndarray, beside: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """As `leading_eigenpairs`, of the matrix with `diagonal` (n,) and `beside` (n - 1,) on both sides of it."""
    size = len(diagonal)
    coupled = np.finfo(float).eps * (np.abs(diagonal[:-1]) + np.abs(diagonal[1:]))
    if (np.abs(beside) > coupled).all():
        values = scipy.linalg.eigvalsh_tridiagonal(diagonal, beside, lapack_driver="sterf", check_finite=False)[-count:]
        block, end = np.ones(size, np.int32), np.full(size, size, np.int32)  # one block, which ends with the last row
        vectors, failed = lapack.dstein(diagonal, beside, values, block, end)
        if not failed:
            return values, vectors
    # Falls apart into blocks, where inverse iteration would need to know which block each value is of.
    return scipy.linalg.eigh_tridiagonal(
        diagonal, beside, select="i", select_range=(size - count, size - 1), lapack_driver="stemr", check_finite=False
    )
