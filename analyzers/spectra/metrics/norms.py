"""Sizes of a matrix: its norms, and how far its largest and smallest directions lie apart."""

from __future__ import annotations

import math

import numpy as np

from analyzers.spectra.metrics.metric import Metric, Spectrum


def condition_number(layer: Spectrum) -> float:
    """sigma_1 / sigma_n; NaN where sigma_n is not known to better than a tenth of itself."""
    largest, smallest = layer.singular_values[0], layer.singular_values[-1]
    if smallest <= 10 * layer.error * largest:
        return math.nan
    return largest / smallest


METRICS = {
    "sigma_max": Metric(
        "Largest singular value",
        "weight units",
        "How much the layer can stretch an input: its spectral norm.",
        "Golub & Van Loan, Matrix Computations, 2.3.3",
        lambda layer: layer.singular_values[0],
        needs_all=False,
    ),
    "sigma_min": Metric(
        "Smallest singular value",
        "weight units",
        "How much the layer shrinks the direction it cares least about.",
        "Golub & Van Loan, Matrix Computations, 2.4",
        lambda layer: layer.singular_values[-1],
    ),
    "frobenius_norm": Metric(
        "Frobenius norm",
        "weight units",
        "The root of the sum of squares of all weights: the layer's total size.",
        "Golub & Van Loan, Matrix Computations, 2.3.1",
        lambda layer: math.sqrt(layer.energy) * layer.singular_values[0],
        needs_all=False,
    ),
    "nuclear_norm": Metric(
        "Nuclear norm",
        "weight units",
        "The sum of the singular values: large when many directions matter.",
        "Fazel, Matrix Rank Minimization with Applications, 2002",
        lambda layer: np.sum(layer.singular_values),
    ),
    "condition_number": Metric(
        "Condition number",
        "",
        "The largest singular value over the smallest; blank where the smallest is lost in rounding.",
        "Golub & Van Loan, Matrix Computations, 2.6.2",
        condition_number,
    ),
}
