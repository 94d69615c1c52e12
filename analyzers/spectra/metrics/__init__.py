"""What the singular values of a layer say: every number with its unit, one sentence of meaning, and its source.

One family a file, one registry for data frame, page and command line. Adding a metric is adding one `Metric` to a family.
"""

from __future__ import annotations

from analyzers.spectra.metrics.metric import Metric, Spectrum
from loraxs_core.registry import found

# Raised whenever a definition changes, so that values cached by an older version are computed again.
VERSION = 2

METRICS: dict[str, Metric] = found(__name__, "METRICS", first=("norms", "ranks", "energy", "power_law", "noise", "decay"))

__all__ = ["METRICS", "VERSION", "Metric", "compute_metrics"]


def compute_metrics(layer: Spectrum) -> dict[str, float]:
    """Every metric of one `LayerSpectrum`; NaN where it is not defined or needs singular values that were not computed."""
    return {
        name: float(metric.compute(layer)) if layer.complete or not metric.needs_all else float("nan")
        for name, metric in METRICS.items()
    }
