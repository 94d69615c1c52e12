"""`MemoryEstimate`: what an estimate says. How it is made stands in `estimate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from analyzers.memory.gpus import CONTEXT, Gpu
from analyzers.memory.labels import PARTS
from analyzers.words import gib_text
from loraxs_core.html import table


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of a training step on one GPU, in bytes.

    peak_allocated: live tensors; ``torch.cuda.max_memory_allocated()``. peak_reserved: what PyTorch holds;
    ``max_memory_reserved()`` where there is room. interval: (low, high) of the reserved peak. least: the least that PyTorch must be able
    to hold: where a GPU is full it gives back what it holds in vain before it fails. breakdown: part -> bytes at the moment of the peak; sums
    to peak_allocated (see `analyzers.memory.labels.PART_MEANING`). details: (part, what) -> bytes, finer. context: (low, high) of
    what CUDA adds on top in ``nvidia-smi``. how: ``traced``, ``extrapolated`` or ``closed form``. reasons: sentences for the user.
    """

    peak_allocated: int
    peak_reserved: int
    interval: tuple[int, int]
    least: int
    breakdown: dict[str, int]
    details: dict[tuple[str, str], int] = field(default_factory=dict)
    context: tuple[int, int] = CONTEXT
    how: str = "traced"
    reasons: tuple[str, ...] = ()

    @property
    def on_card(self) -> tuple[int, int]:
        """(low, high) of what ``nvidia-smi`` shows: the interval and the CUDA context."""
        return self.interval[0] + self.context[0], self.interval[1] + self.context[1]

    def fits(self, gpu: Gpu) -> str:
        """Whether the step runs on `gpu`: ``yes`` when the upper end of the interval and the largest usual CUDA context fit, ``no``
        when not even the least does, at the lower end of what is uncertain; ``perhaps`` between them."""
        if gpu.memory >= self.on_card[1]:
            return "yes"
        surely = self.least * min(1.0, self.interval[0] / self.peak_reserved) + self.context[0]
        return "no" if gpu.memory < surely else "perhaps"

    def _repr_html_(self) -> str:
        low, high = (gib_text(bound) for bound in self.interval)
        rows = [(part, gib_text(held)) for part, held in self.breakdown.items() if held]
        return table(
            f"Peak of a training step: {gib_text(self.peak_reserved)}, {low} to {high} ({self.how})", ["of it", ""], rows
        )


def finished(
    allocated: int,
    reserved: int,
    parts: dict[tuple[str, str], float],
    width: tuple[float, float],
    how: str,
    reasons: list[str],
    *,
    least: int | None = None,
) -> MemoryEstimate:
    """An estimate from its pieces. width: how far the interval goes below and above the reserved peak, as shares of it. least: the
    allocated peak when None."""
    details = {label: round(size) for label, size in sorted(parts.items(), key=lambda item: -item[1])}
    breakdown = {part: sum(size for (of, _), size in details.items() if of == part) for part in PARTS}
    breakdown["temporaries"] += allocated - sum(breakdown.values())  # rounding of extrapolated parts: a few bytes
    interval = (round(reserved * (1 - width[0])), round(reserved * (1 + width[1])))
    least = allocated if least is None else least
    return MemoryEstimate(allocated, reserved, interval, least, breakdown, details, how=how, reasons=tuple(reasons))
