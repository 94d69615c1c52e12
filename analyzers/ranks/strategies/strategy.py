"""What a strategy is: a score for the step from rank r to r + 1 in one layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analyzers.spectra import LayerSpectrum
from loraxs_core.inventory import Weight


@dataclass(frozen=True)
class Layer:
    """A target layer as a strategy sees it. spectrum: of W0, with every metric of the scan; None where none was asked for."""

    weight: Weight
    spectrum: LayerSpectrum | None = None


@dataclass(frozen=True)
class Strategy:
    """A way to share a budget among layers.

    score: (layer, ranks) -> worth per trained number of the step from each of `ranks` to the next, an array of the same length,
    never rising with the rank; only comparisons between steps matter. NaN says that a step cannot be judged, as where only the
    largest singular values are known. evidence: what a plan of this strategy rests on, for the person who is to trust it.
    needs_spectra: whether `Layer.spectrum` must be there.

    >>> by_stable_rank = lambda layer, ranks: layer.spectrum.metrics["stable_rank"] / (2 * ranks + 1)
    """

    name: str
    label: str
    summary: str
    evidence: str
    score: Callable[[Layer, np.ndarray], np.ndarray]
    needs_spectra: bool = False
