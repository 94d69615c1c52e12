"""What a strategy is: a score for the step from rank r to r + 1 in one layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analyzers.ranks.signals import Curve
from analyzers.spectra import LayerSpectrum
from loraxs_core.inventory import Weight


@dataclass(frozen=True)
class Layer:
    """A target layer as a strategy sees it. spectrum: of W0, with every metric of the scan; None where none was asked for. signal:
    what the task said of it; None likewise. importance: that at half of the measured ranks, over the geometric mean of all layers.
    agreement: of two halves of the calibration data on which layers matter, 0 (none) to 1 (the same order).
    """

    weight: Weight
    spectrum: LayerSpectrum | None = None
    signal: Curve | None = None
    importance: float = 1.0
    agreement: float = 0.0

    @property
    def known(self) -> int:
        """The largest rank of which spectrum or signal, where there is one, say what it is worth."""
        if self.signal is not None:
            return min(self.weight.full_rank, len(self.signal.whole))
        return self.weight.full_rank if self.spectrum is None else len(self.spectrum.singular_values)


@dataclass(frozen=True)
class Strategy:
    """A way to share a budget among layers.

    score: (layer, ranks) -> worth per trained number of the step from each of `ranks` to the next, an array of the same length,
    never rising with the rank; only comparisons between steps matter. NaN says that a step cannot be judged, as where only the
    largest singular values are known. evidence: what a plan of this strategy rests on, for the person who is to trust it.
    needs_spectra: whether `Layer.spectrum` must be there. additive: whether score times cost is a gain, so that gains of different
    layers add up and the largest sum is sought; else only the order of the steps counts, and equal layers stay equal. signal: the
    kind of `analyzers.ranks.signals` that `Layer.signal` must be; empty for none. spread: ranks stay within uniform's divided and
    multiplied by it; None for any. experimental: said beside the label. remark: what the
    reader of a plan of these layers should know, or nothing.

    >>> by_stable_rank = lambda layer, ranks: layer.spectrum.metrics["stable_rank"] / (2 * ranks + 1)
    """

    name: str
    label: str
    summary: str
    evidence: str
    score: Callable[[Layer, np.ndarray], np.ndarray]
    needs_spectra: bool = False
    additive: bool = False
    signal: str = ""
    spread: float | None = None
    experimental: bool = False
    remark: Callable[[Sequence[Layer]], str] = lambda layers: ""


def measured(layer: Layer, ranks: np.ndarray) -> np.ndarray:
    """The score of a strategy that follows a signal: what the step from each of `ranks` to the next adds to the layer's curve, per
    trained number; NaN beyond the ranks that were measured."""
    assert layer.signal is not None  # `Strategy.signal` says so
    curve = np.concatenate([[0.0], layer.signal.whole])
    known = ranks + 1 < len(curve)
    gained = curve[np.where(known, ranks + 1, 0)] - curve[np.where(known, ranks, 0)]
    return np.where(known, gained / (2 * ranks + 1), np.nan)


def in_proportion(metric: str) -> Callable[[Layer, np.ndarray], np.ndarray]:
    """The score of a strategy whose ranks aim at the proportions of a metric of the spectrum (see `role.score`); NaN where it is
    not defined. A layer below 1 counts as 1, so that none is starved."""

    def score(layer: Layer, ranks: np.ndarray) -> np.ndarray:
        assert layer.spectrum is not None  # `needs_spectra` says so
        weight = layer.spectrum.metrics[metric]
        return -(ranks + 0.5) / (weight if np.isnan(weight) else max(weight, 1.0))

    return score
