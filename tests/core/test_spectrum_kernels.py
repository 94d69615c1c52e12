"""Singular values from strips against LAPACK's float64 SVD, on every kind of matrix that could trip them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from loraxs_core import spectrum_kernels
from loraxs_core.errors import NonFiniteWeights
from loraxs_core.progress import Cancellation
from loraxs_core.spectrum_kernels import TOLERANCE, spectrum


def with_spectrum(rows: int, columns: int, values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A random matrix with the given singular values."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.standard_normal((rows, values.size)))[0]
    right = np.linalg.qr(generator.standard_normal((columns, values.size)))[0]
    return (left * values) @ right.T


GAUSSIAN = np.random.default_rng(1).standard_normal
CASES = {
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
    assert result.error <= TOLERANCE
    rounding = 4 * np.finfo(float).eps * min(matrix.shape)
    scaled = np.ldexp(result.values, -exponent)
    assert np.abs(scaled - truth).max() <= (result.error + rounding) * truth[0] + np.ldexp(5e-324, -exponent)
    if truth[0]:
        assert result.energy == pytest.approx(np.sum((truth / truth[0]) ** 2), rel=1e-9)
    else:
        assert result.energy == 0


def test_the_gram_matrix_alone_stays_within_its_stated_error():
    """The bound that decides whether the exact route is taken holds for the values it speaks of, small ones included."""
    for smallest in (1e-2, 1e-4, 1e-6):
        matrix = with_spectrum(256, 200, np.logspace(0, np.log10(smallest), 200))
        truth = scipy.linalg.svdvals(matrix)
        work = spectrum_kernels._Work(spectrum_kernels.ArrayStrips(matrix), "W", lambda fraction: None, lambda: False)
        gram = spectrum_kernels._gram(work)
        values = np.sqrt(np.maximum(spectrum_kernels._eigenvalues(gram.matrix)[::-1], 0))
        error = np.abs(values - truth).max() / truth[0]
        bound = spectrum_kernels.gram_error(values)
        assert error <= bound
        assert bound < 1e-16 / smallest * 100


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
