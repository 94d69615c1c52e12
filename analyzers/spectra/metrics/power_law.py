"""The tail of the eigenvalues of W^T W as a power law p(x) ~ x^-alpha for x >= xmin, fitted by Clauset's method.

For every candidate xmin the exponent is the maximum-likelihood one, and the xmin is kept whose fit is closest to the data in
the Kolmogorov-Smirnov distance D (Clauset, Shalizi & Newman, Power-law distributions in empirical data, SIAM Review 2009;
used on weight matrices by Martin & Mahoney, WeightWatcher).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from analyzers.spectra.metrics.metric import Metric, Spectrum

SMALLEST_SAMPLE = 20  # fewer values give no exponent worth reading
PROBES = 48  # points at which a candidate's distance is bounded from below before it is computed in full


def fit(eigenvalues: np.ndarray) -> tuple[float, float, float]:
    """(alpha, D, xmin) of positive `eigenvalues`; NaN for fewer than SMALLEST_SAMPLE or all equal.

    Exact: a candidate xmin is passed over only when a lower bound of its distance, the largest gap at a few points of its
    tail, is already above the best distance found.
    """
    data = np.sort(eigenvalues[eigenvalues > 0])
    if data.size < SMALLEST_SAMPLE or data[0] == data[-1]:
        return math.nan, math.nan, math.nan
    logs = np.log(data)
    sizes = np.arange(data.size, 1, -1, dtype=np.float64)  # of the tails that begin at each candidate
    excess = np.cumsum(logs[::-1])[::-1][:-1] - sizes * logs[:-1]
    possible = np.flatnonzero(excess > 1e-12 * sizes)
    decay = np.full(sizes.size, math.nan)  # alpha - 1
    decay[possible] = sizes[possible] / excess[possible]

    share = np.linspace(0, 1, PROBES)
    positions = possible[:, None] + (share * (sizes[possible, None] - 1)).astype(np.int64)
    fitted = np.exp(-decay[possible, None] * (logs[positions] - logs[possible, None]))
    empirical = 1 - (positions - possible[:, None]) / sizes[possible, None]
    bounds = np.abs(empirical - fitted).max(axis=1)

    best, at = math.inf, -1
    for candidate, bound in sorted(zip(possible.tolist(), bounds.tolist(), strict=True), key=lambda pair: (pair[1], pair[0])):
        if bound > best:
            break
        tail = np.exp(-decay[candidate] * (logs[candidate:] - logs[candidate]))
        distance = float(np.abs(1 - np.arange(tail.size) / tail.size - tail).max())
        if distance < best or (distance == best and candidate < at):
            best, at = distance, candidate
    return 1 + float(decay[at]), best, float(data[at])


def tail_of(layer: Spectrum) -> np.ndarray:
    """The eigenvalues sigma^2 above rounding noise."""
    values = layer.singular_values
    return np.square(values[values > max(layer.error, np.finfo(float).eps) * values[0]])


@lru_cache(maxsize=8)
def _fit_bytes(raw: bytes) -> tuple[float, float, float]:
    return fit(np.frombuffer(raw))


def fit_layer(layer: Spectrum) -> tuple[float, float, float]:
    """`fit` of a layer, once for its three metrics."""
    return _fit_bytes(tail_of(layer).tobytes())


SOURCE = "Clauset, Shalizi & Newman, SIAM Review 2009; Martin & Mahoney, JMLR 2021 (WeightWatcher)"

METRICS = {
    "alpha": Metric(
        "Power-law exponent alpha",
        "",
        "How fast the tail of the eigenvalues falls: 2 to 4 in well-trained layers, above 6 hardly a power law.",
        SOURCE,
        lambda layer: fit_layer(layer)[0],
    ),
    "alpha_distance": Metric(
        "Distance to the power law",
        "",
        "The Kolmogorov-Smirnov distance between the tail and its power law: small when the exponent means something.",
        SOURCE,
        lambda layer: fit_layer(layer)[1],
    ),
    "alpha_xmin": Metric(
        "Start of the power law",
        "weight units squared",
        "The eigenvalue from which on the power law is fitted.",
        SOURCE,
        lambda layer: fit_layer(layer)[2],
    ),
}
