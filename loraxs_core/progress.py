"""How far a long piece of work has come, and how one asks it to stop. One small type for the scan, the sweep and the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of work (bytes, flops, steps: whatever time is proportional to), and what is being done now."""

    done: float
    total: float
    message: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def fraction(self) -> float:
        """Between 0 and 1."""
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self.started

    @property
    def remaining(self) -> float | None:
        """Seconds left at the rate so far; None before there is a rate."""
        return self.elapsed * (1 - self.fraction) / self.fraction if self.done else None


ProgressCallback = Callable[[Progress], None]
Cancelled = Callable[[], bool]


class Cancellation(BaseException):
    """Raised inside work that its caller asked to stop. Not an error: nothing went wrong.

    No `Exception`, as KeyboardInterrupt is none: a signal raises it anywhere, also inside a library that turns whatever goes wrong
    there into an error of its own (transformers' padding of a batch does).
    """


def seconds(value: float | None) -> str:
    """A duration as people read it: ``0.4 s``, ``8 s``, ``3 min 20 s``, ``1 h 05 min``; an em dash for None."""
    if value is None:
        return "\u2014"
    whole = round(value)
    if whole < 60:
        return f"{whole} s" if value >= 1 else f"{value:.1g} s" if value >= 0.05 else "0 s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
