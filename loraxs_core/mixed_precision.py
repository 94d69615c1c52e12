"""Leading singular triples with single-precision products where they are enough, double where they are not.

A truncated SVD of a 4,096 x 4,096 weight spends its time multiplying the weight with blocks of vectors, and single precision does
that twice as fast. What it loses can be had back cheaply: a Krylov space built in float32 holds the wanted directions to about
1e-7, and one Rayleigh-Ritz step in float64 takes the best triples out of it. Singular values are then exact to float64 (their
error is the square of the vectors'), and so is how neighbouring triples are told apart; what remains is the share of each vector
that lies outside the space, and that is what `outside` bounds, from the residual in float64.

Works on NumPy arrays; knows nothing about models.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from loraxs_core.leading_eigenpairs import leading_eigenpairs
from loraxs_core.random_numbers import gaussian

# Vectors multiplied at once: a larger block is quicker per vector and needs more of them, which pays for larger ranks.
BLOCK, WIDE_BLOCK, WIDE_FROM = 16, 32, 100
TOLERANCE = 5e-7  # accepted error of a vector, see `outside`; two machines then agree on dW to 1e-6
# Coupling of a wanted vector to what is not in the space, over its eigenvalue: near what float32 can tell.
SPACE_TOLERANCE = 2.5e-7
STRIP = 512  # rows or columns widened to float64 at a time
CACHED = 256  # rows multiplied twice in a row in float32
SPACE = 2 / 5  # of the matrix's shorter side; a space that would grow larger costs more than a dense method
ROUNDS = 6  # corrections in float64 before a dense method is the better choice


def leading(tall: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The `r` leading triples of `tall` (m x n, m >= n): left (m x r), values (r,), right (n x r), float64.

    tall: float32 or float64, stored by rows or by columns; never copied whole where it is float32. Each vector is within about
    `TOLERANCE` of the exact one, the left and right ones are orthonormal to float64. None where that is not reached in a space that
    pays: a flat spectrum, values that coincide, a few outliers far above the rest.
    """
    keep = r + max(8, r // 8)  # the extra triples tell the last wanted ones apart from those that follow
    space = _krylov_space(tall.astype(np.float32, copy=False), r, keep)
    if space is None:
        return None
    right, floor = space
    values, left, right = _rayleigh_ritz(right, _times(right, tall.T))
    for _ in range(ROUNDS):
        image = _times(left, tall)
        residual = image - values[:, None] * right
        if outside(values, np.linalg.norm(residual, axis=1), floor, r) <= TOLERANCE:
            # The right vectors that belong to `left`: half a step of subspace iteration, for which the product is there already.
            basis, triangle = _orthonormal_rows(image)
            small_left, values, small_right = scipy.linalg.svd(triangle.T, check_finite=False)
            return (small_left.T @ left)[:r].T, values[:r], (small_right @ basis)[:r].T
        # Davidson's correction: for a vector of eigenvalue t, what is missing in direction i is residual_i / (t - t_i), and most
        # directions have a t_i near the mean of all that are not in the space.
        squares = values[:, None] ** 2
        fresh = residual * (values[:, None] / np.maximum(squares - floor, 1e-3 * squares))
        fresh /= np.maximum(np.linalg.norm(fresh, axis=1), np.finfo(float).tiny)[:, None]
        for _ in range(2):
            fresh -= (fresh @ right.T) @ right
        fresh = _orthonormal_rows(fresh)[0]
        both = np.concatenate([right, fresh])
        images = np.concatenate([values[:, None] * left, _times(fresh, tall.T)])
        values, left, right = (part[:keep] for part in _rayleigh_ritz(both, images))
    return None


def outside(values: np.ndarray, residuals: np.ndarray, floor: float, r: int) -> float:
    """The largest error of the first `r` vectors: the sine of the angle to the exact singular vector, to first order.

    values (k,), k > r: of all triples kept. residuals (k,): ``|W^T u - s v|`` of each; ``W v = s u`` holds exactly. floor: typical
    eigenvalue of W^T W among the directions that are not kept. What vector j lacks outside the space is ``s_j |residual_j|`` over the
    distance to `floor`; what it holds of vector i inside is the product of both residuals over both distances (Stewart & Sun, Matrix
    Perturbation Theory, V.2): of second order, but not small where s_i and s_j nearly coincide.
    """
    squares = values**2
    coupling = values * residuals
    distance = squares - floor
    if distance[-1] <= 0:
        return np.inf
    lacking = coupling / distance
    between = np.abs(squares[:r, None] - squares[None, :])
    np.fill_diagonal(between, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        mixed = coupling[:r, None] * lacking[None, :] / between
    return float(np.sqrt(lacking[:r] ** 2 + np.nan_to_num(mixed, nan=0.0, posinf=np.inf).max(axis=1) ** 2).max())


def _krylov_space(single: np.ndarray, r: int, keep: int) -> tuple[np.ndarray, float] | None:
    """(`keep` orthonormal rows that hold the leading `r` right vectors of `single`, mean eigenvalue of all that is left over).

    Block Lanczos on W^T W with full reorthogonalisation, in float32 (Golub & Underwood, The block Lanczos method for computing
    eigenvalues, 1977), grown until the leading `r` satisfy `SPACE_TOLERANCE`. None where the space would be too large.
    """
    n = single.shape[1]
    block = WIDE_BLOCK if r >= WIDE_FROM else BLOCK
    limit = int(SPACE * n) // block * block
    basis = np.empty((limit, n), np.float32)  # a vector a row
    projected = np.zeros((limit, limit))
    fresh = _orthonormal_rows(gaussian(n, np.arange(block), "krylov").T.astype(np.float32))[0]
    error, checked = np.inf, 0
    check_at = keep + 4 * r + 2 * block  # where spectra like those of weights are about to converge
    for end in range(block, limit + 1, block):
        new = slice(end - block, end)
        basis[new] = fresh
        image = _gram_times(fresh, single)
        # What the two blocks before hold of it, which in exact arithmetic is all, and then what rounding left of every block.
        for old in (slice(max(0, end - 2 * block), end), slice(0, end)):
            overlap = image @ basis[old].T
            image -= overlap @ basis[old]
            projected[old, new] += overlap.T
        fresh, coupling = _orthonormal_rows(image)
        if end < check_at or end <= keep:
            continue
        squares, ritz = leading_eigenpairs(np.tril(projected[:end, :end].T), keep)
        # |G x - t x| of the Ritz vector x is exactly the coupling to the block that is not in the space yet.
        wanted = squares[-r:]
        if not wanted[0] > 0:
            return None
        missing = coupling @ ritz[-block:]
        error, before = float((np.linalg.norm(missing[:, -r:], axis=0) / wanted).max()), error
        if error <= SPACE_TOLERANCE or error > before / 2:  # where it stalls, float32 has given what it can
            entries = single.ravel(order="K")  # in the order they are stored in, which needs no copy
            rest = max(0.0, (float(entries @ entries) - squares.sum()) / (n - keep))
            # That block is there already and holds most of what the Ritz vectors lack; by perturbation, with its own values near
            # those of the block before.
            typical = np.trace(projected[new, new]) / block
            missing /= np.maximum(squares - typical, 1e-3 * squares)
            rows = ritz.T[::-1] @ basis[:end].astype(np.float64) + missing.T[::-1] @ fresh.astype(np.float64)
            return _orthonormal_rows(rows)[0], rest
        # At first a factor of four a block; then as between the last two checks, and it gets faster: half of what is left at a time.
        factor = (before / error) ** (2 * block / (end - checked)) if checked else 4.0
        check_at, checked = end + block * max(1, math.ceil(math.log(error / SPACE_TOLERANCE, max(factor, 1.4)))), end
    return None


def _gram_times(rows: np.ndarray, single: np.ndarray) -> np.ndarray:
    """rows (b x n) @ W^T W of the float32 `single` (m x n), a strip of it at a time: it is in the cache for the second product.

    With a few columns on the right OpenBLAS is up to 1.6 times as fast as with as many rows on the left (AVX-512).
    """
    columns = np.ascontiguousarray(rows.T)
    total = np.zeros_like(columns)
    for start in range(0, len(single), CACHED):
        strip = single[start : start + CACHED]
        total += strip.T @ (strip @ columns)
    return total.T


def _rayleigh_ritz(right: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best triples within the span of `right` (k x n, orthonormal rows; `images` = right @ tall^T): values, left, right rows."""
    basis, triangle = _orthonormal_rows(images)
    small_left, values, small_right = scipy.linalg.svd(triangle, check_finite=False)
    return values, small_left.T @ basis, small_right @ right


def _times(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """rows (k x p, float64) @ matrix (p x q) in float64, without a float64 copy of `matrix`: a strip of it at a time."""
    p, q = matrix.shape
    if matrix.dtype == np.float64:
        return rows @ matrix
    if matrix.flags.c_contiguous:
        product = np.zeros((len(rows), q))
        for start in range(0, p, STRIP):
            strip = slice(start, start + STRIP)
            product += rows[:, strip] @ matrix[strip].astype(np.float64)
        return product
    product = np.empty((len(rows), q))
    for start in range(0, q, STRIP):
        strip = slice(start, start + STRIP)
        product[:, strip] = rows @ matrix[:, strip].astype(np.float64)
    return product


def _orthonormal_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Q (k x n) with orthonormal rows, triangle R (k x k)): ``rows = R^T Q``. Overwrites `rows`."""
    q, triangle = scipy.linalg.qr(rows.T, mode="economic", overwrite_a=True, check_finite=False)
    return q.T, triangle
