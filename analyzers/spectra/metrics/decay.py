"""How fast the singular values fall."""

from __future__ import annotations

import math

import numpy as np

from analyzers.spectra.metrics.metric import Metric, Spectrum


def decay_slope(layer: Spectrum) -> float:
    """Least-squares slope of log sigma_i against log i over the first half of the values; NaN for fewer than 4 positive."""
    values = layer.singular_values[: (layer.full_rank + 1) // 2]
    values = values[values > max(layer.error, np.finfo(float).eps) * layer.singular_values[0]]
    if values.size < 4:
        return math.nan
    x, y = np.log(np.arange(1, values.size + 1)), np.log(values)
    x -= x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


METRICS = {
    "decay_slope": Metric(
        "Decay slope",
        "",
        "The exponent p in sigma_i ~ i^p over the first half: near 0 for a flat spectrum, -1 and below for a steep one.",
        "Least squares on log-log axes, first half of the values; definition of this workbench",
        decay_slope,
    ),
}
