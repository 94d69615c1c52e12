"""Routines of the OpenBLAS that SciPy bundles, called directly: side by side in threads, and those SciPy does not wrap.

SciPy's own wrappers hold Python's interpreter lock while they compute (measured with SciPy 1.17: two threads of ``dsyrk`` or
``eigh`` take twice as long as one), so that matrices would wait for one another. ctypes lets go of it. The library is found by
what SciPy has loaded and checked once against NumPy; where it is missing or fails, `library` is None and callers go SciPy's way.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import blas, lapack
from threadpoolctl import threadpool_info

LETTERS = {np.dtype(np.float64): "d", np.dtype(np.float32): "s"}
_loading = threading.Lock()


@dataclass(frozen=True)
class OpenBlas:
    """One shared library, with 32-bit integers as SciPy's bundled OpenBLAS has them; the prefix of its names."""

    shared: ctypes.CDLL
    prefix: str

    @classmethod
    def of(cls, shared: ctypes.CDLL) -> OpenBlas:
        """Raises AttributeError when the library does not hold what is called here under a name that SciPy uses."""
        found = cls(shared, "scipy_" if hasattr(shared, "scipy_dsyrk_") else "")
        found.need(*(f"{letter}{name}" for letter in LETTERS.values() for name in ("syrk", "potrf", "potrs")))
        return found

    def need(self, *names: str) -> None:
        """Raises AttributeError when a routine is missing."""
        for name in names:
            getattr(self.shared, f"{self.prefix}{name}_")

    def call(self, name: str, *arguments: bytes | int | np.ndarray, info: bool = True) -> None:
        """Calls a Fortran routine: everything by reference, INFO last, then the hidden length 1 of each character argument.

        info: off for BLAS routines, which have no INFO. Raises ArithmeticError when INFO says that the routine failed.
        """
        status = ctypes.c_int(0)
        passed: list[object] = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                passed.append(ctypes.c_void_p(argument.ctypes.data))
            elif isinstance(argument, int):
                passed.append(ctypes.byref(ctypes.c_int(argument)))
            else:
                passed.append(ctypes.c_char_p(argument))
        if info:
            passed.append(ctypes.byref(status))
        characters = sum(isinstance(argument, bytes) for argument in arguments)
        getattr(self.shared, f"{self.prefix}{name}_")(*passed, *[ctypes.c_size_t(1)] * characters)
        if status.value != 0:
            raise ArithmeticError(f"{name} failed with INFO = {status.value}")

    def works(self) -> bool:
        """Whether ``syrk`` agrees with NumPy in both precisions and orientations."""
        side = np.random.default_rng(0).standard_normal((5, 7))
        for dtype in LETTERS:
            for tall in (True, False):
                product = np.asfortranarray(np.eye(7 if tall else 5), dtype=dtype)
                _syrk(self, np.ascontiguousarray(side, dtype=dtype), product, tall)
                truth = np.eye(product.shape[0]) + (side.T @ side if tall else side @ side.T)
                if not np.allclose(np.tril(product), np.tril(truth), rtol=1e-5):
                    return False
        return True


def library() -> OpenBlas | None:
    """SciPy's OpenBLAS; None where there is none that can be called."""
    with _loading:
        return _library()


def add_gram(side: np.ndarray, product: np.ndarray, *, tall: bool) -> np.ndarray:
    """`product` plus side^T side (tall) or side side^T: its lower triangle, Fortran order, in place where possible; returns it.

    side: b x n when tall, else n x b, in C order and of the same dtype (float64 or float32) as product (n x n).
    """
    found = library()
    if found is not None and side.size:
        _syrk(found, side, product, tall)
        return product
    syrk = {"d": blas.dsyrk, "s": blas.ssyrk}[LETTERS[side.dtype]]
    return syrk(1.0, side.T, beta=1.0, c=product, trans=not tall, lower=1, overwrite_c=1)


def cholesky_solver(matrix: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    """A function that solves matrix x = b for the columns of b (n x k); None when `matrix` (n x n) is not positive definite.

    Both in Fortran order and of one dtype (float64 or float32), both overwritten; of the matrix only the lower triangle is read.
    """
    found, letter, size = library(), LETTERS[matrix.dtype], matrix.shape[0]
    assert matrix.flags.f_contiguous
    if found is None:
        factorise, solve = lapack.get_lapack_funcs(("potrf", "potrs"), (matrix,))
        factor, info = factorise(matrix, lower=1, overwrite_a=1, clean=0)
        return None if info else lambda right: solve(factor, right, lower=1, overwrite_b=1)[0]
    try:
        found.call(f"{letter}potrf", b"L", size, matrix, size)
    except ArithmeticError:
        return None

    def solve_with_factor(right: np.ndarray) -> np.ndarray:
        assert right.flags.f_contiguous
        assert right.dtype == matrix.dtype
        found.call(f"{letter}potrs", b"L", size, right.shape[1], matrix, size, right, size)
        return right

    return solve_with_factor


def _syrk(openblas: OpenBlas, side: np.ndarray, product: np.ndarray, tall: bool) -> None:
    """BLAS is Fortran: a C-ordered b x n strip is n x b there, and its product with its transpose is strip^T strip."""
    assert side.flags.c_contiguous
    assert product.flags.f_contiguous
    assert side.dtype == product.dtype
    rows, columns = side.shape
    size, inner = (columns, rows) if tall else (rows, columns)
    one = np.ones(1, side.dtype)
    transposed = b"N" if tall else b"T"
    openblas.call(
        f"{LETTERS[side.dtype]}syrk", b"L", transposed, size, inner, one, side, columns, one, product, size, info=False
    )


@lru_cache(maxsize=1)
def _library() -> OpenBlas | None:
    for loaded in threadpool_info():
        if loaded.get("internal_api") != "openblas":
            continue
        try:
            found = OpenBlas.of(ctypes.CDLL(loaded["filepath"]))
            if found.works():
                return found
        except (OSError, AttributeError):
            continue
    return None
