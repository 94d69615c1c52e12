"""The largest values of a large matrix from products with its strips: against a float64 SVD, and where the Gram matrix has to tell."""

from __future__ import annotations

import numpy as np
import pytest

from loraxs_core import spectrum_kernels, strip_products
from loraxs_core.errors import NonFiniteWeights
from loraxs_core.progress import Cancellation
from loraxs_core.spectrum_kernels import FAST_TOLERANCE, spectrum

SIDE, TOP = 800, 12


@pytest.fixture(autouse=True)
def _of_any_size(monkeypatch):
    monkeypatch.setattr(strip_products, "FROM", 1)
    monkeypatch.setattr(spectrum_kernels, "STRIP_BYTES", 8 * SIDE * 90)  # several strips


@pytest.fixture
def no_gram(monkeypatch):
    def formed(*_):
        raise AssertionError("the Gram matrix was formed")

    monkeypatch.setattr(spectrum_kernels, "_gram", formed)


def heavy_tailed(rows: int, columns: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((rows, columns)) * np.exp(0.6 * generator.standard_normal(columns))
    return (0.02 * matrix).astype(np.float32)


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE + 700, SIDE), (SIDE, SIDE + 700)], ids=["square", "tall", "wide"])
@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**20])
def test_values_and_energy_are_those_of_an_svd_and_no_gram_matrix_is_formed(no_gram, shape, scale):
    matrix = heavy_tailed(*shape) * np.float32(scale)
    truth = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    steps: list[float] = []
    found = spectrum(matrix, top=TOP, step=steps.append)
    off = np.abs(found.values - truth[:TOP]).max() / truth[0]
    assert found.values.dtype == np.float64
    assert off <= found.error <= FAST_TOLERANCE
    assert off < 1e-8  # the last pass is in float64, and values are more exact than their vectors
    assert found.energy == pytest.approx(np.sum((truth / truth[0]) ** 2), rel=1e-8)
    assert steps == sorted(steps)
    assert steps[-1] == 1.0


@pytest.mark.parametrize(
    "matrix",
    [
        np.linalg.qr(heavy_tailed(SIDE, SIDE).astype(np.float64))[0],
        heavy_tailed(SIDE, 3) @ heavy_tailed(3, SIDE),
        heavy_tailed(SIDE, SIDE).astype(np.float64) * 1e60,
        heavy_tailed(SIDE, SIDE) * np.float32(1e-30),
        np.zeros((SIDE, SIDE)),
    ],
    ids=["all equal", "of rank three", "huge", "tiny", "zero"],
)
def test_where_it_might_miss_some_the_gram_matrix_tells(matrix):
    truth = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    found = spectrum(matrix, top=TOP)
    assert np.abs(found.values - truth[:TOP]).max() <= found.error * truth[0]
    assert found.error <= 2 * FAST_TOLERANCE or truth[TOP - 1] < 1e-6 * truth[0]


def test_a_space_that_is_not_large_enough_is_given_up(monkeypatch):
    monkeypatch.setattr(strip_products, "SPACE_BYTES", 4 * SIDE * 96)
    truth = np.linalg.svd(heavy_tailed(SIDE, SIDE).astype(np.float64), compute_uv=False)
    found = spectrum(heavy_tailed(SIDE, SIDE), top=TOP)
    assert np.abs(found.values - truth[:TOP]).max() <= found.error * truth[0]


def test_a_wrong_vector_shows_in_the_bound(monkeypatch):
    """What the space gave is not believed: the last pass measures it."""
    right = strip_products.krylov

    def spoilt(*given, **named):
        values, vectors = right(*given, **named)
        return values, vectors + 0.05 * np.random.default_rng(1).standard_normal(vectors.shape).astype(np.float32)

    monkeypatch.setattr(strip_products, "krylov", spoilt)
    formed = []
    gram = spectrum_kernels._gram
    monkeypatch.setattr(spectrum_kernels, "_gram", lambda *given: formed.append(1) or gram(*given))
    spectrum(heavy_tailed(SIDE, SIDE), top=TOP)
    assert formed


def test_damaged_numbers_are_named_and_a_stop_is_heard():
    matrix = heavy_tailed(SIDE, SIDE)
    with pytest.raises(Cancellation):
        spectrum(matrix, top=TOP, cancelled=lambda: True)
    matrix[-1, -1] = np.nan
    with pytest.raises(NonFiniteWeights, match=r"layer\.3"):
        spectrum(matrix, top=TOP, name="layer.3")
