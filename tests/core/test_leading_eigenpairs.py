"""The largest eigenpairs of a symmetric matrix against NumPy's, for matrices that fall apart or hold equal values as well."""

from __future__ import annotations

import numpy as np
import pytest

from loraxs_core.leading_eigenpairs import leading_eigenpairs


def turned(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues."""
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    return (q * values) @ q.T


MATRICES = {
    "slow decay": turned((1 + np.arange(120.0)) ** -0.5),
    "equal values": turned(np.repeat([3.0, 2.0, 1.0], 40)),
    "nearly equal values": turned(1 + 1e-13 * np.arange(120)),
    "low rank": turned(np.where(np.arange(120) < 5, 1.0, 0.0)),
    "either sign": turned(np.linspace(-2, 1, 120)),
    "huge and tiny": turned(np.geomspace(1e150, 1e-150, 120)),
    "diagonal": np.diag(np.arange(120.0)),
    "two blocks": np.kron(np.eye(2), turned(np.linspace(1, 2, 60))),
    "zero": np.zeros((120, 120)),
    "three rows": turned(np.array([1.0, 2.0, 5.0])),
    "one row": np.array([[-4.0]]),
}


@pytest.mark.parametrize("share", [0.0, 0.2, 1 / 3, 0.5, 1.0])
@pytest.mark.parametrize("name", MATRICES)
def test_pairs_satisfy_their_definition(name, share):
    matrix = MATRICES[name]
    count = max(1, int(share * len(matrix)))
    lower = np.tril(matrix) + np.triu(np.full_like(matrix, 7.0), 1)  # only the lower triangle is to be read
    values, vectors = leading_eigenpairs(np.asfortranarray(lower), count)
    truth = np.linalg.eigvalsh(matrix)
    scale = np.abs(truth).max() or 1.0
    assert vectors.shape == (len(matrix), count)
    np.testing.assert_allclose(values / scale, truth[-count:] / scale, atol=1e-13)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-12)
    np.testing.assert_allclose(matrix @ vectors / scale, vectors * (values / scale), atol=1e-13)
