"""The truncated SVD against LAPACK in float64, over shapes, spectra, precisions and drivers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraxs_core import mixed_precision, svd
from loraxs_core.errors import AdapterError, NonFiniteWeights
from loraxs_core.random_numbers import gaussian


def decaying(out: int, into: int, decay: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    k = min(out, into)
    left, right = (np.linalg.qr(rng.standard_normal((side, k)))[0] for side in (out, into))
    return (left * (1 + np.arange(k)) ** -decay) @ right.T


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 40),
    into=st.integers(1, 40),
    share=st.floats(0, 1),
    exponent=st.integers(-30, 30),
    dtype=st.sampled_from([np.float32, np.float64, np.float16]),
    seed=st.integers(0, 1000),
)
def test_triples_satisfy_their_definition(out, into, share, exponent, dtype, seed):
    matrix = np.random.default_rng(seed).standard_normal((out, into))
    matrix = (matrix * (2.0**exponent if dtype != np.float16 else 1)).astype(dtype)
    r = max(1, round(share * min(out, into)))
    U, S, Vt = svd.truncated_svd(matrix, r)
    wide = matrix.astype(np.float64)
    assert U.shape == (out, r)
    assert Vt.shape == (r, into)
    assert U.dtype == S.dtype == Vt.dtype == np.float64
    assert np.all(np.diff(S) <= 0)
    top = np.linalg.svd(wide, compute_uv=False)
    np.testing.assert_allclose(S, top[:r], atol=1e-13 * top[0])
    assert svd.residuals(wide, U, S, Vt.T).max() < 1e-13
    np.testing.assert_allclose(U.T @ U, np.eye(r), atol=1e-12)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(r), atol=1e-12)


@pytest.mark.parametrize("driver", ["krylov", "gram", "gesdd", "gesvd"])
@pytest.mark.parametrize("shape", [(300, 300), (500, 200), (200, 500)])
def test_every_driver_gives_the_same_vectors(driver, shape):
    matrix = decaying(*shape, 0.3).astype(np.float32)
    U, S, Vt = svd.truncated_svd(matrix, 12, driver=driver)
    left, values, right = np.linalg.svd(matrix.astype(np.float64))
    signs = np.sign(np.sum(left[:, :12] * U, axis=0))
    np.testing.assert_allclose(S, values[:12], rtol=1e-12)
    np.testing.assert_allclose(U * signs, left[:, :12], atol=1e-10)
    np.testing.assert_allclose(Vt * signs[:, None], right[:12], atol=1e-10)


def test_krylov_agrees_with_a_dense_method_on_a_large_matrix():
    matrix = decaying(1600, 1500, 0.2, seed=3)
    krylov = svd.truncated_svd(matrix, 8, driver="krylov")
    dense = svd.truncated_svd(matrix, 8, driver="gram")
    for one, other in zip(krylov, dense, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)


@pytest.mark.parametrize("shape", [(1300, 1000), (1000, 1300)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("outlier", [1.0, 20.0])
def test_single_precision_products_give_the_vectors_of_a_dense_method(shape, dtype, outlier, monkeypatch):
    """By default on a large matrix: values to float64, vectors to 1e-6, with a value far above the rest as real weights have it."""
    matrix = decaying(*shape, 0.2, seed=3)
    U, _, Vt = np.linalg.svd(matrix, full_matrices=False)
    matrix = (matrix + (outlier - 1) * np.outer(U[:, 0], Vt[0])).astype(dtype)
    dense = svd.truncated_svd(matrix, 12, driver="gram")
    for slow in ("_krylov", "_gram", "_lapack"):
        monkeypatch.setattr(svd, slow, None)
    mixed = svd.truncated_svd(matrix, 12)
    np.testing.assert_allclose(mixed[1], dense[1], rtol=1e-11)
    for side in (0, 2):
        axis = 0 if side == 0 else 1
        assert np.linalg.norm(mixed[side] - dense[side], axis=axis).max() < 1e-6
        assert np.abs(mixed[side] - dense[side]).max() > 0  # it is another route
    np.testing.assert_allclose(mixed[0].T @ mixed[0], np.eye(12), atol=1e-12)
    np.testing.assert_allclose(mixed[2] @ mixed[2].T, np.eye(12), atol=1e-12)


def test_a_space_that_holds_no_answer_is_left_for_a_dense_method():
    """Equal values (a block cannot hold them all), nearly equal ones that no residual of single precision tells apart, and noise."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((1000, 1000)))[0] for _ in range(2))
    close = np.linspace(2, 1, 1000) ** 3
    close[5] = close[6] * (1 + 1e-11)
    for values in (np.ones(1000), close):
        matrix = (left * values) @ right.T
        assert mixed_precision.leading(matrix, 10) is None
        U, S, Vt = svd.truncated_svd(matrix, 10)
        np.testing.assert_allclose(S, values[:10], atol=1e-12)
        assert svd.residuals(matrix, U, S, Vt.T).max() < 1e-12


def test_a_route_that_is_not_exact_is_replaced(monkeypatch):
    """A single-precision route fails the residual check, so the answer is LAPACK's in double precision."""
    matrix = decaying(60, 50, 0.2)

    def single(tall, r):
        left, values, right = np.linalg.svd(tall.astype(np.float32), full_matrices=False)
        return left[:, :r].astype(float), values[:r].astype(float), right[:r].T.astype(float)

    exact = svd.truncated_svd(matrix, 10)
    monkeypatch.setattr(svd, "_gram", single)
    for one, other in zip(svd.truncated_svd(matrix, 10), exact, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)


@pytest.mark.parametrize("matrix", [np.zeros((5, 4)), np.eye(6), np.diag([1.0, 1e-8, 1e-16, 0, 0])])
def test_degenerate_matrices(matrix):
    U, S, Vt = svd.truncated_svd(matrix, 4)
    np.testing.assert_allclose((U * S) @ Vt @ Vt.T, matrix @ Vt.T, atol=1e-13)
    np.testing.assert_allclose(U.T @ U, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(4), atol=1e-12)


def test_signs_do_not_depend_on_those_of_the_route():
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((30, 6)), rng.standard_normal((20, 6))
    signs = np.array([1, -1, -1, 1, -1, 1])
    for one, other in zip(svd.pin_signs(left, right), svd.pin_signs(left * signs, right * signs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_errors_name_the_weight():
    with pytest.raises(AdapterError, match=r"layer\.3.*5x4.*between 1 and 4, not 5"):
        svd.truncated_svd(np.ones((5, 4)), 5, name="layer.3")
    broken = np.ones((5, 4))
    broken[1, 2] = np.nan
    with pytest.raises(NonFiniteWeights, match=r"layer\.3"):
        svd.truncated_svd(broken, 2, name="layer.3")


def test_the_random_numbers_never_change():
    """Adapters on disk were pinned and fingerprinted with these numbers; they may not differ in any later version."""
    np.testing.assert_array_equal(np.round(gaussian(2, np.array([0, 7]), "sign-left"), 12), np.round(np.array(FROZEN), 12))
    block = gaussian(400, np.arange(50), "x")
    assert abs(block.mean()) < 0.02
    assert abs(block.std() - 1) < 0.02
    np.testing.assert_array_equal(block[:, 10:20], gaussian(400, np.arange(10, 20), "x"))


FROZEN = [[-1.6042401738230931, -0.6046426144435704], [0.07759553789694565, -0.6111705769301322]]
