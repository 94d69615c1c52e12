"""Eigenvalues of a symmetric matrix without vectors, by two-stage reduction where this SciPy offers it.

LAPACK's ``dsytrd_2stage`` family (full matrix -> band -> tridiagonal) does its arithmetic in matrix products, while the
classical ``dsytrd`` does half of it in matrix-vector products that wait for memory. SciPy's wheels carry these routines in
their bundled OpenBLAS and do not wrap them, so they are called through ctypes: found by name, checked once against SciPy's own
eigenvalues, and left alone wherever either fails. The portable route is `scipy.linalg.eigh`.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.linalg

TWO_STAGE_FROM = 900  # rows; below this the one-stage routine is as fast
BAND = 48  # half-bandwidth of the intermediate band matrix
_LETTERS = {np.dtype(np.float64): "d", np.dtype(np.float32): "s"}
_loading = threading.Lock()


def eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Ascending eigenvalues of the symmetric n x n `matrix` in its own precision (float32 or float64).

    Only the lower triangle is read. A Fortran-ordered matrix is overwritten. Backward stable: each value is within a modest
    multiple of eps times the largest magnitude (Haidar, Ltaief & Dongarra, SC 2011, for the two-stage reduction).
    """
    if matrix.shape[0] >= TWO_STAGE_FROM:
        routines = two_stage()
        if routines is not None:
            return routines.eigenvalues(matrix)
    return scipy.linalg.eigh(matrix, lower=True, eigvals_only=True, overwrite_a=True, check_finite=False)


def two_stage() -> TwoStage | None:
    """The two-stage routines of the BLAS that SciPy has loaded; None where there are none or they fail their check."""
    with _loading:
        return _two_stage()


@lru_cache(maxsize=1)
def _two_stage() -> TwoStage | None:
    from threadpoolctl import threadpool_info

    for library in threadpool_info():
        if library.get("internal_api") != "openblas":
            continue
        try:
            routines = TwoStage(ctypes.CDLL(library["filepath"]))
            if routines.works():
                return routines
        except (OSError, AttributeError, ArithmeticError):
            continue
    return None


@dataclass
class TwoStage:
    """sytrd_sy2sb, sytrd_sb2st and sterf of one shared library, with 32-bit integers as SciPy's bundled OpenBLAS has them.

    Raises AttributeError when the library does not hold them under a name that SciPy uses.
    """

    library: ctypes.CDLL

    def __post_init__(self) -> None:
        self.prefix = "scipy_" if hasattr(self.library, "scipy_dsytrd_sy2sb_") else ""
        for letter in _LETTERS.values():
            for name in ("sytrd_sy2sb", "sytrd_sb2st", "sterf"):
                getattr(self.library, f"{self.prefix}{letter}{name}_")

    def works(self) -> bool:
        """Whether both precisions agree with SciPy on a matrix large enough to have a band."""
        root = np.random.default_rng(0).standard_normal((3 * BAND, 3 * BAND))
        symmetric = root + root.T
        truth = np.linalg.eigvalsh(symmetric)
        return all(
            np.abs(self.eigenvalues(np.asfortranarray(symmetric, dtype=dtype)) - truth).max()
            <= 100 * np.finfo(dtype).eps * np.abs(truth).max()
            for dtype in _LETTERS
        )

    def eigenvalues(self, matrix: np.ndarray) -> np.ndarray:
        """Ascending eigenvalues of `matrix` (lower triangle), which is overwritten where it is in Fortran order.

        Raises ArithmeticError when a routine reports failure.
        """
        matrix = np.asfortranarray(matrix)
        size, dtype = matrix.shape[0], matrix.dtype
        letter = _LETTERS[dtype]
        band = np.zeros((BAND + 1, size), dtype, order="F")
        scalars = np.empty(size, dtype)
        # Workspaces as dsytrd_2stage sizes them, with its largest inner block of 128.
        work = np.empty(size * BAND + size * max(BAND + 1, 128) + 2 * BAND * BAND, dtype)
        self._call(f"{letter}sytrd_sy2sb", b"L", size, BAND, matrix, size, band, BAND + 1, scalars, work, work.size)
        diagonal, beside = np.empty(size, dtype), np.empty(size, dtype)
        householder = np.empty(4 * size, dtype)
        work = np.empty((2 * BAND + 1) * size + BAND * size + BAND * 128, dtype)
        self._call(
            f"{letter}sytrd_sb2st", b"Y", b"N", b"L", size, BAND, band, BAND + 1, diagonal, beside,
            householder, householder.size, work, work.size,
        )  # fmt: skip
        self._call(f"{letter}sterf", size, diagonal, beside)
        return diagonal

    def _call(self, name: str, *arguments: bytes | int | np.ndarray) -> None:
        """Calls a Fortran routine: all by reference, INFO last, then the hidden length 1 of each character argument."""
        info = ctypes.c_int(0)
        passed: list[object] = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                passed.append(ctypes.c_void_p(argument.ctypes.data))
            elif isinstance(argument, int):
                passed.append(ctypes.byref(ctypes.c_int(argument)))
            else:
                passed.append(ctypes.c_char_p(argument))
        characters = sum(isinstance(argument, bytes) for argument in arguments)
        getattr(self.library, f"{self.prefix}{name}_")(*passed, ctypes.byref(info), *[ctypes.c_size_t(1)] * characters)
        if info.value != 0:
            raise ArithmeticError(f"{name} failed with INFO = {info.value}")
