"""The shape of a metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analyzers.spectra.artefact import LayerSpectrum


@dataclass(frozen=True)
class Metric:
    """One number about a layer's spectrum.

    label: its name on screen. unit: what it counts (``directions``, ``weight units``; empty for a pure number). meaning: one
    sentence. source: where the definition comes from. compute: LayerSpectrum -> number, NaN where it is not defined.
    needs_all: whether it needs every singular value, rather than the largest few and the total energy. whole: whether it is
    always a whole number.
    """

    label: str
    unit: str
    meaning: str
    source: str
    compute: Callable[[LayerSpectrum], float]
    needs_all: bool = True
    whole: bool = False
