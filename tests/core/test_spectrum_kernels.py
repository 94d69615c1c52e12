"""Singular values from strips against LAPACK's float64 SVD, on every kind of matrix that could trip them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from loraxs_core import spectrum_kernels, symmetric_eigenvalues
from loraxs_core.errors import NonFiniteWeights
from loraxs_core.progress import Cancellation
from loraxs_core.spectrum_kernels import FAST_TOLERANCE, TOLERANCE, spectrum
from loraxs_core.strips import Product


def with_spectrum(rows: int, columns: int, values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A random matrix with the given singular values."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.standard_normal((rows, values.size)))[0]
    right = np.linalg.qr(generator.standard_normal((columns, values.size)))[0]
    return (left * values) @ right.T


def mixing(size: int, decay: float, generator: np.random.Generator) -> np.ndarray:
    """A symmetric matrix whose eigenvalues fall as i^-decay: what makes random weights look like trained ones."""
    basis = np.linalg.qr(generator.standard_normal((size, size)))[0]
    return (basis * np.arange(1.0, size + 1) ** -decay) @ basis.T


GAUSSIAN = np.random.default_rng(1).standard_normal
CASES: dict[str, np.ndarray] = {
    "square": GAUSSIAN((96, 96)),
    "tall": GAUSSIAN((300, 64)),
    "wide": GAUSSIAN((64, 300)),
    "very wide": GAUSSIAN((3, 2000)),
    "one row": GAUSSIAN((1, 200)),
    "one column": GAUSSIAN((200, 1)),
    "one number": np.array([[-3.0]]),
    "float32": GAUSSIAN((80, 60)).astype(np.float32),
    "zero": np.zeros((40, 60)),
    "zero rows first": np.vstack([np.zeros((500, 16)), GAUSSIAN((20, 16))]),
    "identity": np.eye(50),
    "nearly equal": with_spectrum(90, 70, 1 + 1e-13 * np.arange(70)),
    "rank 5": with_spectrum(100, 80, np.array([5.0, 4, 3, 2, 1])),
    "rank 5, wide": with_spectrum(80, 100, np.array([5.0, 4, 3, 2, 1])),
    "repeated columns": np.tile(GAUSSIAN((120, 10)), (1, 6)),
    "steep": with_spectrum(120, 100, np.logspace(0, -18, 100)),
    "condition 1e7": with_spectrum(200, 150, np.logspace(0, -7, 150)),
    "one tiny value": with_spectrum(64, 64, np.r_[np.linspace(2, 1, 63), 1e-8]),
    "huge entries": GAUSSIAN((50, 40)) * 1e200,
    "tiny entries": GAUSSIAN((50, 40)) * 1e-200,
    "denormals": np.full((30, 20), 5e-324) * np.arange(1, 21),
    "float32 denormals": (GAUSSIAN((30, 20)) * 1e-42).astype(np.float32),
    "huge dynamic range": GAUSSIAN((64, 32)) * np.logspace(-300, 300, 64)[:, None],
    "huge dynamic range, falling": GAUSSIAN((64, 32)) * np.logspace(300, -300, 64)[:, None],
    "huge dynamic range, wide": GAUSSIAN((32, 64)) * np.logspace(-300, 300, 64),
}


@pytest.mark.parametrize("strip_bytes", [1 << 24, 2000], ids=["one strip", "many strips"])
@pytest.mark.parametrize("name", CASES)
def test_every_singular_value_is_within_the_stated_error_of_lapack(name, strip_bytes, monkeypatch):
    monkeypatch.setattr(spectrum_kernels, "STRIP_BYTES", strip_bytes)
    matrix = CASES[name]
    # LAPACK scales by itself, but its singular values of denormal matrices are lost: an exact power of two brings them up.
    exponent = int(np.frexp(np.abs(matrix).max())[1]) if matrix.any() else 0
    truth = scipy.linalg.svdvals(np.ldexp(matrix.astype(np.float64), -exponent))

    result = spectrum(matrix)

    assert result.values.shape == (min(matrix.shape),)
    assert result.values.dtype == np.float64
    assert (np.diff(result.values) <= 0).all()
    assert (result.values >= 0).all()
    assert result.error <= 1.0001 * TOLERANCE
    rounding = 4 * np.finfo(float).eps * min(matrix.shape)
    scaled = np.ldexp(result.values, -exponent)
    assert np.abs(scaled - truth).max() <= (result.error + rounding) * truth[0] + np.ldexp(5e-324, -exponent)
    if truth[0]:
        assert result.energy == pytest.approx(np.sum((truth / truth[0]) ** 2), rel=1e-9)
    else:
        assert result.energy == 0


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.6, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("shape", [(320, 320), (700, 256), (200, 640)])
def test_the_bound_that_decides_holds_for_the_gram_matrix_alone(shape, decay, fast):
    generator = np.random.default_rng(3)
    matrix = generator.standard_normal(shape) @ mixing(shape[1], decay, generator)
    matrix = matrix.astype(np.float32)
    truth = scipy.linalg.svdvals(matrix.astype(np.float64))
    work = spectrum_kernels._Work(spectrum_kernels.ArrayStrips(matrix), "W", None, None)
    gram = spectrum_kernels._gram(work, np.dtype(np.float32 if fast else np.float64))
    values = np.sqrt(np.maximum(symmetric_eigenvalues.eigenvalues(gram.matrix)[::-1].astype(np.float64), 0))
    assert np.abs(values - truth).max() / truth[0] <= gram.root_error(values)
    assert gram.energy == pytest.approx(np.sum(truth**2), rel=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.6, 3.0])
@pytest.mark.parametrize("shape", [(650, 650), (1310, 650), (645, 1300)])
def test_fast_is_within_its_tolerance_and_its_stated_error(shape, decay):
    generator = np.random.default_rng(4)
    matrix = (generator.standard_normal(shape) @ mixing(shape[1], decay, generator)).astype(np.float32)
    truth = scipy.linalg.svdvals(matrix.astype(np.float64))
    result = spectrum(matrix, fast=True)
    error = np.abs(result.values - truth).max() / truth[0]
    assert error <= result.error <= FAST_TOLERANCE
    # Float32 is used where it pays and where it can keep the promise.
    assert (result.error > 1.01 * TOLERANCE) == (max(shape) >= 2 * min(shape) and decay < 1)


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.3])
def test_fast_mends_the_small_values_of_a_square_matrix_in_float32(decay, monkeypatch):
    monkeypatch.setattr(spectrum_kernels, "FAST_ANY_FROM", 0)
    generator = np.random.default_rng(8)
    matrix = (generator.standard_normal((500, 500)) @ mixing(500, decay, generator)).astype(np.float32)
    truth = scipy.linalg.svdvals(matrix.astype(np.float64))
    assert truth[-1] < 1e-3 * truth[0]
    result = spectrum(matrix, fast=True)
    assert 1e-6 < result.error <= FAST_TOLERANCE  # float32 did it
    assert np.abs(result.values - truth).max() <= result.error * truth[0]


def test_the_gram_matrix_survives_its_reduction_in_the_other_triangle():
    """LAPACK's documentation promises that the upper triangle is not touched; both routes are held to it."""
    for size, overwrites in ((300, False), (2000, symmetric_eigenvalues.two_stage() is not None)):
        root = np.random.default_rng(9).standard_normal((size, size))
        gram = spectrum_kernels._Gram(np.asfortranarray(np.tril(root @ root.T)))
        gram.keep()
        whole = gram.matrix.copy()
        assert np.array_equal(whole, whole.T)
        gram.eigenvalues()
        assert np.array_equal(gram.matrix, whole) != overwrites
        gram.again()
        assert np.array_equal(gram.matrix, whole)


@pytest.mark.parametrize("name", CASES)
def test_fast_keeps_its_promise_on_every_kind_of_matrix(name, monkeypatch):
    monkeypatch.setattr(spectrum_kernels, "FAST_FROM", 0)
    monkeypatch.setattr(spectrum_kernels, "FAST_ANY_FROM", 0)
    matrix = CASES[name]
    exponent = int(np.frexp(np.abs(matrix).max())[1]) if matrix.any() else 0
    truth = scipy.linalg.svdvals(np.ldexp(matrix.astype(np.float64), -exponent))
    result = spectrum(matrix, fast=True)
    assert result.error <= FAST_TOLERANCE
    error = np.abs(np.ldexp(result.values, -exponent) - truth).max()
    assert error <= (result.error + 1e-13) * truth[0] + np.ldexp(5e-324, -exponent)


@pytest.mark.parametrize("top", [1, 16, 60, 1000])
@pytest.mark.parametrize("name", ["square", "tall", "wide", "rank 5", "float32", "zero", "huge entries"])
def test_the_largest_values_with_the_energy_of_all(name, top, monkeypatch):
    monkeypatch.setattr(spectrum_kernels, "FAST_FROM", 0)
    matrix = CASES[name]
    exponent = int(np.frexp(np.abs(matrix).max())[1]) if matrix.any() else 0
    truth = scipy.linalg.svdvals(np.ldexp(matrix.astype(np.float64), -exponent))
    result = spectrum(matrix, top=top)
    assert result.values.size == min(top, truth.size)
    assert np.abs(np.ldexp(result.values, -exponent) - truth[:top]).max() <= result.error * truth[0]
    if truth[0]:
        assert result.energy == pytest.approx(np.sum((truth / truth[0]) ** 2), rel=1e-5)


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (60, 60)])
@pytest.mark.parametrize("rank", [1, 8, 80])
def test_a_product_is_never_formed_and_its_spectrum_is_that_of_the_product(shape, rank):
    generator = np.random.default_rng(5)
    left, right = generator.standard_normal((shape[0], rank)), generator.standard_normal((rank, shape[1]))

    class Unreadable(Product):
        def rows(self, start, stop):
            raise AssertionError("formed")

        columns = rows

    truth = scipy.linalg.svdvals(left @ right)
    result = spectrum(Unreadable(left, right))
    assert result.values.size == min(shape)
    assert np.abs(result.values - truth).max() <= 1e-12 * truth[0]
    assert result.energy == pytest.approx(np.sum((truth / truth[0]) ** 2))


def test_the_small_values_are_recovered_without_the_slow_route(monkeypatch):
    """A few small values among many: inverse iteration must do, and do well."""
    monkeypatch.setattr(spectrum_kernels, "_by_qr", None)
    matrix = with_spectrum(300, 280, np.r_[np.logspace(0, -3, 270), np.logspace(-6, -12, 10)])
    truth = scipy.linalg.svdvals(matrix)
    result = spectrum(matrix)
    assert np.abs(result.values - truth).max() <= 1e-11
    assert result.error <= 1.0001 * TOLERANCE


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(40, 20), (20, 40)])
def test_nan_and_infinity_are_refused_by_name(bad, shape):
    matrix = np.ones(shape, dtype=np.float32)
    matrix[-1, -1] = bad
    with pytest.raises(NonFiniteWeights, match=r"encoder\.layer\.3\.output\.dense holds NaN or infinite"):
        spectrum(matrix, name="encoder.layer.3.output.dense")


def test_progress_only_grows_and_ends_at_one(monkeypatch):
    monkeypatch.setattr(spectrum_kernels, "STRIP_BYTES", 4000)
    fractions = []
    spectrum(CASES["tall"], step=fractions.append)
    assert len(fractions) > 10
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_stops_between_strips_when_asked(monkeypatch):
    monkeypatch.setattr(spectrum_kernels, "STRIP_BYTES", 4000)
    asked = []

    def after_three() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(Cancellation):
        spectrum(CASES["tall"], cancelled=after_three)
    assert len(asked) == 4
