"""The spectrum of one weight: its singular values, how much energy the first r directions hold, and its numbers of `METRICS`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from analyzers.spectra.metrics import METRICS, VERSION, compute_metrics
from loraxs_core.inventory import Weight


@dataclass(frozen=True)
class NotFinite:
    """A weight without a spectrum, because it holds NaN or infinities. reason: one sentence that names it."""

    weight: Weight
    reason: str


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """The spectrum of one weight.

    weight: which one. singular_values: float64, descending; all min(out, in) of them, or the largest few. energy: the sum of
    all squared singular values in units of the largest one squared (which is the stable rank); 0 for the zero matrix.
    error: bound on the error of every singular value, relative to the largest. metrics: name -> number, see `METRICS`.
    """

    weight: Weight
    singular_values: np.ndarray
    energy: float
    error: float
    saved_metrics: Mapping[str, float] | None = field(default=None, repr=False)

    @property
    def full_rank(self) -> int:
        """How many singular values the matrix has."""
        return self.weight.full_rank

    @property
    def sides(self) -> tuple[int, int]:
        """(shorter, longer) side of the matrix."""
        return min(self.weight.shape), max(self.weight.shape)

    @property
    def complete(self) -> bool:
        """Whether every singular value is here, rather than the largest few."""
        return self.singular_values.size == self.full_rank

    @cached_property
    def scaled(self) -> np.ndarray:
        """The singular values divided by the largest; zeros for the zero matrix."""
        largest = self.singular_values[0]
        return self.singular_values / largest if largest else np.zeros_like(self.singular_values)

    @cached_property
    def energy_shares(self) -> np.ndarray:
        """Fraction of the squared Frobenius norm that direction k+1 holds, at index k; zeros for the zero matrix.

        Of the whole norm, also where only the largest values are known.
        """
        return np.square(self.scaled) / (self.energy or 1.0)

    @cached_property
    def cumulative_energy(self) -> np.ndarray:
        """Fraction of the squared Frobenius norm that the first k+1 directions hold, at index k; ones for the zero matrix."""
        if self.energy == 0:
            return np.ones(self.singular_values.size)
        return np.minimum(np.cumsum(self.energy_shares), 1.0)

    @cached_property
    def metrics(self) -> Mapping[str, float]:
        """Every metric of `METRICS`; NaN where it is not defined for this layer."""
        return self.saved_metrics if self.saved_metrics is not None else compute_metrics(self)

    def largest(self, top: int | None) -> LayerSpectrum:
        """The same spectrum with the `top` largest values alone; itself when they are all asked for."""
        if top is None or top >= self.singular_values.size:
            return self
        return LayerSpectrum(self.weight, self.singular_values[:top].copy(), self.energy, self.error)

    def measured(self) -> LayerSpectrum:
        """Itself, once its metrics are computed: done where the work is spread, so that nobody waits for them later."""
        self.metrics  # noqa: B018
        return self

    def energy_at(self, rank: int) -> float:
        """Fraction of the squared Frobenius norm that the top `rank` directions hold; NaN beyond those that are known."""
        if rank <= 0:
            return 0.0
        if rank > self.singular_values.size:
            return 1.0 if self.complete else math.nan
        return float(self.cumulative_energy[rank - 1])

    def energy_gains(self, ranks: np.ndarray) -> np.ndarray:
        """What the step from each of `ranks` (below the full rank) to the next adds to `energy_at`; NaN where that is not known."""
        known = ranks < self.singular_values.size
        return np.where(known, self.energy_shares[np.where(known, ranks, 0)], math.nan)

    def gain_over_random(self, rank: int) -> float:
        """How many times more energy the top `rank` directions hold than as many random input directions would.

        A random r-dimensional subspace of the inputs holds r / in of the energy on average (Halko, Martinsson & Tropp, SIAM
        Review 2011), so this is what an SVD initialisation gains over a random one. NaN for rank 0.
        """
        return self.energy_at(rank) * self.weight.shape[1] / rank if rank > 0 else math.nan

    def record(self) -> dict[str, Any]:
        """Everything but the singular values, for JSON."""
        return {
            "weight": dataclasses.asdict(self.weight),
            "energy": self.energy,
            "error": self.error,
            "metrics_version": VERSION,
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], singular_values: np.ndarray) -> LayerSpectrum:
        """The opposite of `record`. Metrics of another version are dropped, to be computed again when asked for."""
        metrics = None
        if record.get("metrics_version") == VERSION and record["metrics"].keys() == METRICS.keys():
            metrics = {name: math.nan if value is None else value for name, value in record["metrics"].items()}
        return cls(weight_of(record), singular_values, record["energy"], record["error"], metrics)


def weight_of(record: Mapping[str, Any]) -> Weight:
    """The weight of a `record`; what another version knew of it besides is left out."""
    known = {one.name for one in dataclasses.fields(Weight)}
    fields: dict[str, Any] = {key: value for key, value in record["weight"].items() if key in known}
    return Weight(**fields | {"shape": tuple(fields["shape"])})
