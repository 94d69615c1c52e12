"""How exact a scan is, and which cached spectra will do for it."""

from __future__ import annotations

from dataclasses import dataclass

from loraxs_core.errors import SettingsError


@dataclass(frozen=True)
class Accuracy:
    """fast: float32 arithmetic where it saves time. top: only this many values of each layer, the largest, likewise in float32.

    Raises SettingsError for a top below 1.
    """

    fast: bool = False
    top: int | None = None

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise SettingsError(f"top must be at least 1, not {self.top}.")

    @property
    def key(self) -> str:
        """What it is called in the cache."""
        return f"top{self.top}" if self.top is not None else "fast" if self.fast else "exact"

    @property
    def satisfied_by(self) -> tuple[Accuracy, ...]:
        """The accuracies whose result will do, best first."""
        better = [Accuracy()] + ([Accuracy(fast=True)] if self.fast or self.top is not None else [])
        return (*better, self) if self.top is not None else tuple(better)
