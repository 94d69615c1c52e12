"""Signal against noise: how the spectrum differs from that of a matrix of independent random entries.

Singular values of an n x m matrix (n <= m) of noise with standard deviation s fill the Marchenko-Pastur interval
s * (sqrt(m) - sqrt(n)) to s * (sqrt(m) + sqrt(n)). The noise level is read from the median singular value, which a few strong
directions do not move (Gavish & Donoho, The optimal hard threshold for singular values is 4/sqrt(3), IEEE Trans. IT 2014).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from analyzers.spectra.metrics.metric import Metric, Spectrum


@lru_cache(maxsize=256)
def marchenko_pastur_median(beta: float) -> float:
    """Median of the Marchenko-Pastur law of eigenvalues with aspect ratio 0 < beta <= 1 and unit variance."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    # x = low + (high - low) * sin^2(t) turns the square-root ends of the density into smooth ones.
    ends = np.linspace(0, math.pi / 2, 20_001)[1:]
    middles = ends - ends[0] / 2
    mass = np.cumsum((np.sin(middles) * np.cos(middles)) ** 2 / (low + (high - low) * np.sin(middles) ** 2))
    return low + (high - low) * math.sin(float(np.interp(0.5 * mass[-1], mass, ends))) ** 2


def noise_level(layer: Spectrum) -> float:
    """Standard deviation of the entries of the noise whose median singular value equals the layer's."""
    short, long = layer.sides
    return float(np.median(layer.singular_values)) / math.sqrt(long * marchenko_pastur_median(short / long))


def marchenko_pastur_edge(layer: Spectrum) -> float:
    """The largest singular value that noise of this level would have."""
    short, long = layer.sides
    return noise_level(layer) * (math.sqrt(long) + math.sqrt(short))


def marchenko_pastur_density(layer: Spectrum, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Singular values across the noise's interval, and the share of all of them that noise of this level has per unit of sigma.

    The law of sigma = sqrt(long * x) for x under the Marchenko-Pastur law with aspect ratio short / long and variance
    `noise_level` squared; the density integrates to 1. Two arrays of length `points`; empty for a layer without noise.
    """
    short, long = layer.sides
    level, beta = noise_level(layer), short / long
    if level == 0:
        return np.empty(0), np.empty(0)
    low, high = (level * (1 - math.sqrt(beta))) ** 2, (level * (1 + math.sqrt(beta))) ** 2
    sigma = np.linspace(math.sqrt(long * low), math.sqrt(long * high), points + 2)[1:-1]
    x = sigma**2 / long
    density = np.sqrt(np.maximum((high - x) * (x - low), 0)) / (2 * math.pi * level**2 * beta * x)
    return sigma, density * 2 * sigma / long


def gavish_donoho_coefficient(beta: float) -> float:
    """omega(beta): the optimal hard threshold for unknown noise, in units of the median singular value."""
    optimal = math.sqrt(2 * (beta + 1) + 8 * beta / ((beta + 1) + math.sqrt(beta * beta + 14 * beta + 1)))
    return optimal / math.sqrt(marchenko_pastur_median(beta))


def gavish_donoho_rank(layer: Spectrum) -> float:
    """Number of singular values above the optimal hard threshold for unknown noise."""
    short, long = layer.sides
    threshold = gavish_donoho_coefficient(short / long) * float(np.median(layer.singular_values))
    return float(np.count_nonzero(layer.singular_values > threshold))


def signal_to_noise(layer: Spectrum) -> float:
    """Spectrum's ratio: sum of the singular values above its threshold over the sum of the others, divided by sigma_1.

    Its threshold takes the interquartile range of the singular values over 1.349 as the noise and (1 + sqrt(beta)) as the
    edge. NaN when every value lies above it, or all are 0.
    """
    values = layer.singular_values
    short, long = layer.sides
    upper, lower = np.quantile(values, (0.75, 0.25))
    threshold = (upper - lower) / 1.349 * (1 + math.sqrt(short / long))
    noise = float(values[values <= threshold].sum())
    return float(values[values > threshold].sum()) / noise / float(values[0]) if noise else math.nan


METRICS = {
    "mp_edge": Metric(
        "Marchenko-Pastur edge",
        "weight units",
        "The largest singular value that pure noise of the layer's median strength would have.",
        "Marchenko & Pastur 1967; noise level as in Gavish & Donoho 2014",
        marchenko_pastur_edge,
    ),
    "mp_spikes": Metric(
        "Directions above the noise",
        "directions",
        "How many singular values lie above the Marchenko-Pastur edge, where noise alone would have none.",
        "Baik, Ben Arous & Peche 2005; Martin & Mahoney, JMLR 2021",
        lambda layer: float(np.count_nonzero(layer.singular_values > marchenko_pastur_edge(layer))),
        whole=True,
    ),
    "snr": Metric(
        "Signal-to-noise (Spectrum)",
        "1 / weight units",
        "The strong singular values against the weak ones, by which Spectrum chooses the layers to train.",
        "Hartford et al., Spectrum: targeted training on signal to noise ratio, arXiv 2406.06623",
        signal_to_noise,
    ),
    "gavish_donoho_rank": Metric(
        "Gavish-Donoho rank",
        "directions",
        "How many directions to keep for the smallest error if the rest were noise of unknown strength.",
        "Gavish & Donoho, IEEE Trans. Information Theory 2014",
        gavish_donoho_rank,
        whole=True,
    ),
}
