"""What a strategy is: a score for the step from rank r to r + 1 in one layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loraxs_core.inventory import Weight


@dataclass(frozen=True)
class Layer:
    """A target layer as a strategy sees it. singular_values: of W0, descending (float64); None where none are needed."""

    weight: Weight
    singular_values: np.ndarray | None = None


@dataclass(frozen=True)
class Strategy:
    """A way to share a budget among layers.

    score: (layer, ranks) -> worth per trained number of the step from each of `ranks` to the next, an array of the same length,
    never rising with the rank; only comparisons between steps matter. evidence: what a plan of this strategy rests on, for the
    person who is to trust it. needs_spectra: whether `Layer.singular_values` must be there.
    """

    name: str
    label: str
    summary: str
    evidence: str
    score: Callable[[Layer, np.ndarray], np.ndarray]
    needs_spectra: bool = False
