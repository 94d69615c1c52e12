"""Routines called directly against NumPy, by SciPy's wrappers where there is no such library, and beside other threads."""

from __future__ import annotations

import ctypes
import threading
import time

import numpy as np
import pytest

from loraxs_core import openblas
from loraxs_core.openblas import OpenBlas, library
from loraxs_core.symmetric_eigenvalues import eigenvalues

needs_library = pytest.mark.skipif(library() is None, reason="this SciPy has no OpenBLAS that can be called")


def gram(size: int, dtype=np.float64) -> np.ndarray:
    root = np.random.default_rng(0).standard_normal((size, size + 7))
    return np.asfortranarray(root @ root.T, dtype=dtype)


def test_a_library_without_the_routines_is_left_alone():
    with pytest.raises(AttributeError):
        OpenBlas.of(ctypes.CDLL(None))


@needs_library
def test_a_routine_that_fails_is_noticed():
    with pytest.raises(ArithmeticError, match="INFO"):
        library().call("dsterf", -1, np.zeros(1), np.zeros(1))


@pytest.mark.parametrize("direct", [True, False], ids=["called directly", "by SciPy's wrapper"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("tall", [True, False])
def test_a_strip_is_added_to_the_lower_triangle_of_a_gram_matrix(direct, dtype, tall, monkeypatch):
    if not direct:
        monkeypatch.setattr(openblas, "library", lambda: None)
    side = np.random.default_rng(3).standard_normal((20, 30)).astype(dtype)
    size = 30 if tall else 20
    start = np.asfortranarray(np.random.default_rng(4).standard_normal((size, size)), dtype=dtype)
    before = start.copy()
    found = openblas.add_gram(side, start, tall=tall)
    truth = before + (side.T @ side if tall else side @ side.T)
    assert np.tril(found) == pytest.approx(np.tril(truth), rel=1e-4, abs=1e-4)
    assert np.array_equal(np.triu(found, 1), np.triu(before, 1))


@pytest.mark.parametrize("direct", [True, False], ids=["called directly", "by SciPy's wrapper"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_factored_matrix_solves_for_columns_and_an_indefinite_one_is_refused(direct, dtype, monkeypatch):
    if not direct:
        monkeypatch.setattr(openblas, "library", lambda: None)
    matrix = gram(60, dtype) + 10 * np.eye(60, dtype=dtype)
    lower = np.asfortranarray(np.tril(matrix) + np.triu(np.full_like(matrix, 7.25), 1))  # the upper triangle is not read
    right = np.asfortranarray(np.random.default_rng(5).standard_normal((60, 4)), dtype=dtype)
    solve = openblas.cholesky_solver(lower)
    assert matrix @ solve(right.copy(order="F")) == pytest.approx(right, abs=1e-3)
    assert matrix @ solve(2 * right) == pytest.approx(2 * right, abs=1e-3)
    assert openblas.cholesky_solver(np.asfortranarray(np.diag([1.0, -1.0]), dtype=dtype)) is None


@needs_library
def test_other_threads_run_while_a_kernel_computes():
    """What SciPy's wrappers do not allow: without it, matrices side by side would take as long as one after another."""
    side, product = np.ones((3000, 1000)), np.zeros((1000, 1000), order="F")
    large, small = gram(1000), gram(800)  # NumPy lets go of the lock too, so nothing else may happen while it is measured
    ticks, done = [], threading.Event()

    def count() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    try:
        for kernel in (
            lambda: openblas.add_gram(side, product, tall=True),
            lambda: eigenvalues(large),
            lambda: eigenvalues(small),
        ):
            started = time.perf_counter()
            kernel()
            ended = time.perf_counter()
            assert sum(started < tick < ended for tick in ticks) >= 3
    finally:
        done.set()
        counter.join()
