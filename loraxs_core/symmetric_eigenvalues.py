"""Eigenvalues of a symmetric matrix without vectors, by two-stage reduction where this SciPy offers it.

LAPACK's ``dsytrd_2stage`` family (full matrix -> band -> tridiagonal) does its arithmetic in matrix products, while the
classical ``dsytrd`` does half of it in matrix-vector products that wait for memory. SciPy's wheels carry these routines and do
not wrap them, so they are called through `loraxs_core.openblas`, checked once against NumPy's eigenvalues, and left alone where
they are missing or fail. The portable route, and that of small matrices, is `numpy.linalg.eigvalsh`, which unlike SciPy's lets
other threads run.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from loraxs_core.openblas import LETTERS, OpenBlas, library

TWO_STAGE_FROM = 900  # rows; below this the one-stage routine is as fast
BAND = 48  # half-bandwidth of the intermediate band matrix
_loading = threading.Lock()


def eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Ascending eigenvalues of the symmetric n x n `matrix` in its own precision (float32 or float64).

    Only the lower triangle is read; of a Fortran-ordered matrix it may be overwritten. Backward stable: each value is within a
    modest multiple of eps times the largest magnitude (Haidar, Ltaief & Dongarra, SC 2011, for the two-stage reduction).
    """
    if matrix.shape[0] >= TWO_STAGE_FROM:
        routines = two_stage()
        if routines is not None:
            return routines.eigenvalues(matrix)
    return np.linalg.eigvalsh(matrix, UPLO="L")


def two_stage() -> TwoStage | None:
    """The two-stage routines of the BLAS that SciPy has loaded; None where there are none or they fail their check."""
    with _loading:
        return _two_stage()


@lru_cache(maxsize=1)
def _two_stage() -> TwoStage | None:
    found = library()
    try:
        routines = TwoStage(found) if found else None
        return routines if routines and routines.works() else None
    except (AttributeError, ArithmeticError):
        return None


@dataclass
class TwoStage:
    """sytrd_sy2sb, sytrd_sb2st and sterf. Raises AttributeError when the library does not hold them."""

    openblas: OpenBlas

    def __post_init__(self) -> None:
        for letter in LETTERS.values():
            self.openblas.need(*(f"{letter}{name}" for name in ("sytrd_sy2sb", "sytrd_sb2st", "sterf")))

    def works(self) -> bool:
        """Whether both precisions agree with NumPy on a matrix large enough to have a band."""
        root = np.random.default_rng(0).standard_normal((3 * BAND, 3 * BAND))
        symmetric = root + root.T
        truth = np.linalg.eigvalsh(symmetric)
        return all(
            np.abs(self.eigenvalues(np.asfortranarray(symmetric, dtype=dtype)) - truth).max()
            <= 100 * np.finfo(dtype).eps * np.abs(truth).max()
            for dtype in LETTERS
        )

    def eigenvalues(self, matrix: np.ndarray) -> np.ndarray:
        """Ascending eigenvalues of `matrix` (lower triangle), which is overwritten where it is in Fortran order.

        Raises ArithmeticError when a routine reports failure.
        """
        matrix = np.asfortranarray(matrix)
        size, dtype, call = matrix.shape[0], matrix.dtype, self.openblas.call
        letter = LETTERS[dtype]
        band = np.zeros((BAND + 1, size), dtype, order="F")
        scalars = np.empty(size, dtype)
        # Workspaces as dsytrd_2stage sizes them, with its largest inner block of 128.
        work = np.empty(size * BAND + size * max(BAND + 1, 128) + 2 * BAND * BAND, dtype)
        call(f"{letter}sytrd_sy2sb", b"L", size, BAND, matrix, size, band, BAND + 1, scalars, work, work.size)
        diagonal, beside = np.empty(size, dtype), np.empty(size, dtype)
        householder = np.empty(4 * size, dtype)
        work = np.empty((2 * BAND + 1) * size + BAND * size + BAND * 128, dtype)
        call(
            f"{letter}sytrd_sb2st", b"Y", b"N", b"L", size, BAND, band, BAND + 1, diagonal, beside,
            householder, householder.size, work, work.size,
        )  # fmt: skip
        call(f"{letter}sterf", size, diagonal, beside)
        return diagonal
