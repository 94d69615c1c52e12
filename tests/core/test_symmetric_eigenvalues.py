"""Two-stage reduction against SciPy's one-stage one, alone, side by side in threads, and where it is missing."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest
import scipy.linalg

from loraxs_core import symmetric_eigenvalues
from loraxs_core.openblas import OpenBlas
from loraxs_core.symmetric_eigenvalues import BAND, TwoStage, eigenvalues, two_stage

needs_two_stage = pytest.mark.skipif(two_stage() is None, reason="this SciPy's BLAS has no two-stage reduction")


def gram(size: int, dtype=np.float64, seed: int = 0) -> np.ndarray:
    root = np.random.default_rng(seed).standard_normal((size, size + 7))
    return np.asfortranarray(root @ root.T, dtype=dtype)


@needs_two_stage
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [1, 2, BAND - 1, BAND, BAND + 1, 2 * BAND, 333, 700])
def test_equals_scipy(size, dtype):
    matrix = gram(size, dtype)
    truth = scipy.linalg.eigh(matrix.astype(np.float64), eigvals_only=True)
    found = two_stage().eigenvalues(matrix.copy(order="F"))
    assert found.dtype == dtype
    assert np.abs(found - truth).max() <= 20 * np.sqrt(size) * np.finfo(dtype).eps * truth[-1]


@needs_two_stage
@pytest.mark.parametrize("name", ["zero", "identity", "diagonal", "rank one", "huge", "tiny"])
def test_special_matrices(name):
    size = 200
    diagonal = np.linspace(-1, 1, size)
    matrix = {
        "zero": np.zeros((size, size)),
        "identity": np.eye(size),
        "diagonal": np.diag(diagonal[::-1]),
        "rank one": np.outer(diagonal, diagonal),
        "huge": gram(size) * 1e140,
        "tiny": gram(size) * 1e-140,
    }[name]
    truth = np.linalg.eigvalsh(matrix)
    found = two_stage().eigenvalues(np.asfortranarray(matrix))
    assert np.abs(found - truth).max() <= 1e-13 * max(np.abs(truth).max(), 1e-300)


@pytest.mark.parametrize("threshold", [0, 10**9], ids=["two-stage", "one-stage"])
def test_only_the_lower_triangle_is_read_and_the_upper_left_alone(threshold, monkeypatch):
    monkeypatch.setattr(symmetric_eigenvalues, "TWO_STAGE_FROM", threshold)
    full = gram(300)
    truth = np.linalg.eigvalsh(full)
    lower = np.asfortranarray(np.tril(full) + np.triu(np.full_like(full, 7.25), 1))
    assert eigenvalues(lower) == pytest.approx(truth, rel=1e-9, abs=1e-9)
    upper = np.triu_indices(300, 1)
    assert (lower[upper] == 7.25).all()


@needs_two_stage
def test_threads_side_by_side_give_the_same_bits():
    matrices = [gram(300, seed=seed) for seed in range(6)]
    alone = [two_stage().eigenvalues(matrix.copy(order="F")) for matrix in matrices]
    together: list[np.ndarray | None] = [None] * 6

    def work(index: int) -> None:
        for _ in range(5):
            together[index] = two_stage().eigenvalues(matrices[index].copy(order="F"))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


def test_without_the_routines_the_portable_route_gives_the_same(monkeypatch):
    monkeypatch.setattr(symmetric_eigenvalues, "TWO_STAGE_FROM", 0)
    monkeypatch.setattr(symmetric_eigenvalues, "_two_stage", lambda: None)
    matrix = gram(150)
    assert eigenvalues(matrix.copy(order="F")) == pytest.approx(np.linalg.eigvalsh(matrix))


def test_a_library_without_the_routines_is_left_alone():
    with pytest.raises(AttributeError):
        TwoStage(OpenBlas(ctypes.CDLL(None), ""))
