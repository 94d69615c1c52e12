"""The largest eigenvalues from a Krylov space against LAPACK's, and the cases in which it must decline."""

from __future__ import annotations

import numpy as np
import pytest

from loraxs_core import largest_eigenvalues
from loraxs_core.largest_eigenvalues import BLOCK, largest
from loraxs_core.progress import Cancellation
from loraxs_core.spectrum_kernels import FAST_TOLERANCE, spectrum

SIZE = 960
COUNT = 24


def with_eigenvalues(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with the given eigenvalues."""
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((values.size, values.size)))[0]
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


def heavy_tailed_gram() -> np.ndarray:
    """W^T W of random weights whose rows and columns have spread scales, as trained ones have."""
    generator = np.random.default_rng(1)
    weights = generator.standard_normal((2 * SIZE, SIZE)) * np.exp(0.6 * generator.standard_normal(SIZE))
    return weights.T @ weights


SMOOTH = np.exp(-np.linspace(0, 12, SIZE))
SPECTRA = {
    "falling": SMOOTH,
    "power law": np.arange(1.0, SIZE + 1) ** -1.0,
    "ten equal": np.concatenate([np.full(10, 1.1), SMOOTH[10:]]),
    "a giant": np.concatenate([[1e4], SMOOTH[1:]]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*SPECTRA, "heavy-tailed"])
def test_square_roots_are_within_the_tolerance_of_lapack(name, dtype):
    matrix = (heavy_tailed_gram() if name == "heavy-tailed" else with_eigenvalues(SPECTRA[name])).astype(dtype)
    before = matrix.copy()
    truth = np.sqrt(np.linalg.eigvalsh(matrix.astype(np.float64))[::-1][:COUNT])
    found = largest(matrix, COUNT, 1e-4)
    assert found is not None
    assert found.dtype == np.float64
    assert np.abs(np.sqrt(found) - truth).max() <= 1e-4 * truth[0]
    assert np.array_equal(matrix, before)


@pytest.mark.parametrize(
    "values",
    [
        np.ones(SIZE),
        np.concatenate([np.full(BLOCK + 8, 1.0), 0.9 * SMOOTH[BLOCK + 8 :]]),
        np.concatenate([np.linspace(2, 1, 40), np.zeros(SIZE - 40)]),
        np.zeros(SIZE),
    ],
    ids=["identity", "more equal ones than a block holds", "low rank", "zero"],
)
def test_declines_where_values_might_be_missed(values):
    assert largest(with_eigenvalues(values).astype(np.float32), COUNT, 1e-4) is None


def test_declines_where_a_reduction_is_cheaper_or_the_space_would_be_too_large(monkeypatch):
    matrix = with_eigenvalues(SMOOTH).astype(np.float32)
    assert largest(matrix, SIZE // 4, 1e-4) is None
    assert largest(matrix[:90, :90], 5, 1e-4) is None
    monkeypatch.setattr(largest_eigenvalues, "SPACE", 1 / 6)
    assert largest(matrix, COUNT, 1e-12) is None


def test_stops_when_asked():
    with pytest.raises(Cancellation):
        largest(with_eigenvalues(SMOOTH), COUNT, 1e-4, cancelled=lambda: True)


@pytest.mark.parametrize("kind", ["heavy-tailed", "orthogonal"])
def test_a_scan_of_the_largest_uses_it_or_falls_back(kind, monkeypatch):
    used = []
    monkeypatch.setattr(
        largest_eigenvalues, "largest", lambda *args, **kwargs: used.append(largest(*args, **kwargs)) or used[-1]
    )
    generator = np.random.default_rng(2)
    matrix = generator.standard_normal((SIZE, SIZE)) * np.exp(0.6 * generator.standard_normal(SIZE))
    if kind == "orthogonal":
        matrix = np.linalg.qr(matrix)[0]
    truth = np.linalg.svd(matrix, compute_uv=False)
    result = spectrum(matrix, top=COUNT)
    assert (used[0] is None) == (kind == "orthogonal")
    assert result.values.size == COUNT
    assert np.abs(result.values - truth[:COUNT]).max() <= result.error * truth[0]
    assert result.error <= 2 * FAST_TOLERANCE
    assert result.energy == pytest.approx(np.sum((truth / truth[0]) ** 2), rel=1e-5)
