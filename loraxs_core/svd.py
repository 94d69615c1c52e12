"""Truncated SVD of one weight matrix, checked by its residual in float64, whatever precision the matrix is stored in.

LoRA-XS rebuilds its frozen matrices from the base weights each time an adapter is loaded, so two machines must find the same
singular vectors. They do when both converge: in working precision a singular vector is off by about ``eps * sigma_1 / gap``, where
gap is the distance to the next singular value; for large matrices `loraxs_core.mixed_precision` finds vectors to 5e-7, by an
estimate from the residual, at a third of the cost; the sketch in an adapter's proof tells differences of some 1e-2 apart.
Approximate methods (randomised SVD with a fixed number of iterations, the authors' choice) are off by what has not converged
yet, whole directions among the last ones.

Every result is checked by its residual before it is returned; what fails is computed again the slow, safe way. Vectors are
pinned here only by a fixed sign rule; `loraxs_core.bases` deals with nearly equal singular values.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from loraxs_core import mixed_precision
from loraxs_core.errors import AdapterError, NonFiniteWeights
from loraxs_core.leading_eigenpairs import leading_eigenpairs
from loraxs_core.openblas import add_gram
from loraxs_core.random_numbers import gaussian
from loraxs_core.spectrum_kernels import spectrum

RESIDUAL_ULPS = 50  # accepted residual of a triple, in units of eps * sqrt(n) * sigma_1; LAPACK's own is below 10
# Below this share of sigma_1 a singular vector taken from the Gram matrix, which squares the condition, is too coarse.
GRAM_FLOOR = 1e-4
# Where a Krylov space beats a dense eigenproblem: shorter side at least, and rank as a share of it at most
# (benchmarks/tuner_init.py). With products in single precision that is so for larger ranks and smaller matrices.
MIXED_MIN_SIDE, MIXED_MAX_SHARE = 1000, 1 / 16
KRYLOV_MIN_SIDE, KRYLOV_MAX_SHARE = 1400, 1 / 40


def singular_values(matrix: np.ndarray, *, name: str = "the matrix") -> np.ndarray:
    """All min(out, in) singular values of `matrix` (out x in), float64, descending, within 1e-9 of sigma_1.

    Raises NonFiniteWeights naming `name` when the matrix holds NaN or infinities.
    """
    return spectrum(np.asarray(matrix), name=name).values


def truncated_svd(
    matrix: np.ndarray, r: int, *, name: str = "the matrix", driver: str = "auto"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `r` leading singular triples of `matrix` (out x in): U (out x r), S (r,), Vt (r x in), all float64.

    ``matrix ~ U @ diag(S) @ Vt``; S descends; U and Vt have orthonormal columns and rows. Signs are pinned by `pin_signs`.

    driver: ``auto`` chooses by shape; ``mixed`` (`loraxs_core.mixed_precision`: values to float64, vectors to 5e-7); ``krylov``
    (block Lanczos with full reorthogonalisation in float64), ``gram`` (eigenvectors of the smaller Gram matrix), ``gesdd`` and
    ``gesvd`` (LAPACK on the matrix itself), which give the same vectors to ``eps * sigma_1 / gap``: triples whose residual exceeds
    `RESIDUAL_ULPS` are computed again by LAPACK. ``mixed`` falls back on them where it does not converge.

    Raises AdapterError when `r` is not between 1 and min(out, in), NonFiniteWeights naming `name` for NaN or infinities.
    """
    matrix = np.asarray(matrix)
    full = min(matrix.shape)
    if not 1 <= r <= full:
        raise AdapterError(f"{name} is {matrix.shape[0]}x{matrix.shape[1]}, so its rank must be between 1 and {full}, not {r}.")
    lowest, highest = float(matrix.min()), float(matrix.max())  # NaN and infinities show up in one of the two
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise NonFiniteWeights(f"{name} holds NaN or infinite numbers; the checkpoint is damaged, download it again.")
    # Tall orientation: LAPACK and the Gram matrix are several times slower on wide input.
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    if tall.dtype not in (np.float32, np.float64):
        tall = tall.astype(np.float64)
    scale = max(highest, -lowest)
    if scale and not 1e-6 < scale < 1e6:
        tall = tall.astype(np.float64) / scale  # keeps squares from over- and underflowing, in single precision too
    else:
        scale = 1.0
    left, values, right = _leading(tall, r, driver)
    if wide:
        left, right = right, left
    left, right = pin_signs(left, right)
    return left, values * scale, np.ascontiguousarray(right.T)


def pin_signs(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`left` (out x r) and `right` (in x r) with each pair's sign chosen so that a fixed random functional of it is positive.

    A pair of singular vectors is defined up to a sign that depends on library, precision and machine. A functional that
    involves every entry changes continuously with the matrix, unlike "the largest entry is positive", where another entry can
    become the largest.
    """
    columns = np.arange(left.shape[1])
    functional = np.einsum("ir,ir->r", gaussian(left.shape[0], columns, "sign-left"), left)
    functional += np.einsum("ir,ir->r", gaussian(right.shape[0], columns, "sign-right"), right)
    signs = np.where(functional < 0, -1.0, 1.0)
    return left * signs, right * signs


def residuals(matrix: np.ndarray, left: np.ndarray, values: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How far each triple is from satisfying its definition: max of |W v - s u| and |W^T u - s v|, relative to sigma_1.

    left (out x r), values (r,), right (in x r). An upper bound of the backward error of the triple.
    """
    top = values[0] if len(values) and values[0] > 0 else 1.0
    forward = np.linalg.norm(matrix @ right - left * values, axis=0)
    backward = np.linalg.norm(matrix.T @ left - right * values, axis=0)
    return np.maximum(forward, backward) / top


def _leading(tall: np.ndarray, r: int, driver: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `r` leading triples of a tall matrix: left (m x r), values, right (n x r), residual-checked."""
    n = tall.shape[1]
    if driver == "auto":
        driver = "mixed" if n >= MIXED_MIN_SIDE and r <= n * MIXED_MAX_SHARE else "gram"
    if driver == "mixed":
        found = mixed_precision.leading(tall, r)
        if found is not None:
            return found
        driver = "krylov" if n >= KRYLOV_MIN_SIDE and r <= n * KRYLOV_MAX_SHARE else "gram"
    tall = np.ascontiguousarray(tall, dtype=np.float64)
    if driver == "krylov":
        found = _krylov(tall, r)
    elif driver == "gram":
        found = _gram(tall, r)
    elif driver in ("gesdd", "gesvd"):
        found = _lapack(tall, r, driver)
    else:
        raise ValueError(f"unknown SVD driver {driver!r}")
    if found is not None and _is_exact(tall, *found):
        return found
    return _lapack(tall, r, "gesvd" if driver == "gesdd" else "gesdd")


def _tolerance(n: int) -> float:
    return RESIDUAL_ULPS * np.finfo(np.float64).eps * np.sqrt(n)


def _is_exact(tall: np.ndarray, left: np.ndarray, values: np.ndarray, right: np.ndarray) -> bool:
    tolerance = _tolerance(tall.shape[1])
    identity = np.eye(len(values))
    return bool(
        residuals(tall, left, values, right).max() <= tolerance
        and np.abs(left.T @ left - identity).max() <= tolerance
        and np.abs(right.T @ right - identity).max() <= tolerance
    )


def _lapack(tall: np.ndarray, r: int, driver: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    left, values, right = scipy.linalg.svd(tall, full_matrices=False, lapack_driver=driver, check_finite=False)
    return left[:, :r], values[:r], right[:r].T


def _gram(tall: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Right vectors from eigh(W^T W), left ones as W v / s. None where squaring the condition would cost accuracy."""
    n = tall.shape[1]
    squares, right = leading_eigenpairs(add_gram(tall, np.zeros((n, n), order="F"), tall=True), r)
    squares, right = squares[::-1], right[:, ::-1]
    if squares[-1] <= (GRAM_FLOOR**2) * squares[0]:
        return None
    return _rayleigh_ritz(tall, right)


def _rayleigh_ritz(tall: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best triples within the span of `right` (n x r, orthonormal): an SVD of the small projected matrix W @ right.

    Makes the left vectors orthonormal to working precision, which W v / s alone does not.
    """
    basis, factor = scipy.linalg.qr(tall @ right, mode="economic", check_finite=False)
    small_left, values, small_right = scipy.linalg.svd(factor, check_finite=False)
    return basis @ small_left, values, right @ small_right.T


def _krylov(tall: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Block Lanczos on W^T W with full reorthogonalisation, grown until `r` triples satisfy the residual tolerance.

    Golub & Kahan bidiagonalisation in its block form (Golub, Luk & Overton 1981). The space holds P (n x k) and Q = orth(W P)
    (m x k), so that the projected problem Q^T W P is k x k. None when the space has grown so far that a dense method is cheaper.
    """
    m, n = tall.shape
    block = 16 if r <= 32 else 32
    limit = min(n // 2, 40 * r + 20 * block)
    tolerance = _tolerance(n)
    right = np.empty((n, limit + block), order="F")
    left = np.empty((m, limit + block), order="F")
    projected = np.zeros((limit + block, limit + block))  # Q^T W P
    size = 0
    candidate = np.linalg.qr(gaussian(n, np.arange(block), "krylov"))[0]
    next_check = 2 * r + 2 * block
    while size + block <= limit:
        end = size + block
        right[:, size:end] = candidate
        image = tall @ candidate
        overlap = left[:, :size].T @ image
        image -= left[:, :size] @ overlap
        again = left[:, :size].T @ image
        image -= left[:, :size] @ again
        new_left, triangle = scipy.linalg.qr(image, mode="economic", overwrite_a=True, check_finite=False)
        left[:, size:end] = new_left
        projected[:size, size:end] = overlap + again
        projected[size:end, size:end] = triangle
        size = end
        residual = np.ascontiguousarray((new_left.T @ tall).T)  # twice as fast as tall.T @ new_left
        for _ in range(2):
            residual -= right[:, :size] @ (right[:, :size].T @ residual)
        candidate, coupling = scipy.linalg.qr(residual, mode="economic", overwrite_a=True, check_finite=False)
        candidate -= right[:, :size] @ (right[:, :size].T @ candidate)
        candidate = scipy.linalg.qr(candidate, mode="economic", overwrite_a=True, check_finite=False)[0]
        if size < next_check:
            continue
        small = projected[:size, :size]
        squares, ritz = scipy.linalg.eigh(small @ small.T, subset_by_index=[size - r, size - 1], check_finite=False)
        # |W^T u - s v| for the Ritz triple is exactly the coupling to the next block.
        error = np.linalg.norm(coupling @ ritz[-block:], axis=0).max() / max(np.sqrt(squares[-1]), np.finfo(float).tiny)
        if error <= tolerance / 4:
            small_left, values, small_right = scipy.linalg.svd(small, check_finite=False)
            return left[:, :size] @ small_left[:, :r], values[:r], right[:, :size] @ small_right[:r].T
        next_check = size + max(block, size // 6)
    return None
