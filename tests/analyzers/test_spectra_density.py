"""The Marchenko-Pastur density that the page draws over the histogram of singular values."""

import numpy as np
import pytest

from analyzers.spectra.layer import LayerSpectrum
from analyzers.spectra.metrics.noise import marchenko_pastur_density, marchenko_pastur_edge
from loraxs_core.checkpoint import Weight


def spectrum(shape: tuple[int, int], matrix: np.ndarray) -> LayerSpectrum:
    sigma = np.linalg.svd(matrix, compute_uv=False)
    energy = float((sigma**2).sum() / sigma[0] ** 2) if sigma[0] else 0.0
    return LayerSpectrum(Weight("w", "other", shape, "float32"), sigma, energy, 0.0)


@pytest.mark.parametrize("shape", [(300, 1200), (400, 400)])
def test_it_integrates_to_one_and_is_the_histogram_of_noise(shape):
    layer = spectrum(shape, np.random.default_rng(0).normal(0, 0.3, shape))
    sigma, density = marchenko_pastur_density(layer, 4000)
    assert np.trapezoid(density, sigma) == pytest.approx(1, abs=0.01)
    assert sigma[-1] <= marchenko_pastur_edge(layer)
    for share in (0.1, 0.5, 0.9):  # the law's quantiles are those of real noise
        mass = np.cumsum(density) / density.sum()
        assert np.interp(share, mass, sigma) == pytest.approx(np.quantile(layer.singular_values, share), rel=0.03)


def test_a_zero_matrix_has_no_density():
    sigma, density = marchenko_pastur_density(spectrum((4, 8), np.zeros((4, 8))))
    assert sigma.size == density.size == 0
