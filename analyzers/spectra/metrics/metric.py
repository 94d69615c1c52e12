"""The shape of a metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Spectrum(Protocol):
    """What a metric reads of a layer: `analyzers.spectra.LayerSpectrum`, or anything of that shape.

    singular_values: float64, descending. scaled: the same over the largest. energy: Σσ² in units of σ_1². error: bound on every
    value, relative to the largest. cumulative_energy: share of the energy in the first k + 1 directions. sides: (shorter, longer)
    side of the matrix. complete: whether all `full_rank` values are there.
    """

    @property
    def singular_values(self) -> np.ndarray: ...
    @property
    def energy(self) -> float: ...
    @property
    def error(self) -> float: ...
    @property
    def full_rank(self) -> int: ...
    @property
    def sides(self) -> tuple[int, int]: ...
    @property
    def complete(self) -> bool: ...
    @property
    def scaled(self) -> np.ndarray: ...
    @property
    def cumulative_energy(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Metric:
    """One number about a layer's spectrum.

    label: its name on screen. unit: what it counts (``directions``, ``weight units``; empty for a pure number). meaning: one
    sentence. source: where the definition comes from. compute: spectrum -> number, NaN where it is not defined.
    needs_all: whether it needs every singular value, rather than the largest few and the total energy. whole: whether it is
    always a whole number.
    """

    label: str
    unit: str
    meaning: str
    source: str
    compute: Callable[[Spectrum], float]
    needs_all: bool = True
    whole: bool = False
