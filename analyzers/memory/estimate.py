"""`estimate_memory`: peak GPU memory of a fine-tune, with what it is made of, how sure it is, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from analyzers.memory.gpus import CONTEXT
from analyzers.memory.settings import MemorySettings
from loraxs_core.errors import WorkbenchError

if TYPE_CHECKING:
    from loraxs_core.checkpoint import Checkpoint

GIB = 2**30
# Half-widths of the interval around the reserved peak, as shares of it, and their reasons.
TRACED = 0.03
EXTRAPOLATED = 0.01
AVERAGED = 0.01
QUANTIZED = 0.07


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of a training step on one GPU, in bytes.

    peak_allocated: live tensors; ``torch.cuda.max_memory_allocated()``. peak_reserved: what PyTorch holds;
    ``max_memory_reserved()``. interval: (low, high) of the reserved peak. breakdown: part -> bytes at the moment of the peak; sums
    to peak_allocated (see `analyzers.memory.parts.PART_MEANING`). details: (part, what) -> bytes, finer. context: (low, high) of
    what CUDA adds on top in ``nvidia-smi``. how: ``traced``, ``extrapolated`` or ``closed form``. reasons: sentences for the user.
    """

    peak_allocated: int
    peak_reserved: int
    interval: tuple[int, int]
    breakdown: dict[str, int]
    details: dict[tuple[str, str], int] = field(default_factory=dict)
    context: tuple[int, int] = CONTEXT
    how: str = "traced"
    reasons: tuple[str, ...] = ()

    @property
    def on_card(self) -> tuple[int, int]:
        """(low, high) of what ``nvidia-smi`` shows: the interval and the CUDA context."""
        return self.interval[0] + self.context[0], self.interval[1] + self.context[1]


def estimate_memory(checkpoint: Checkpoint, settings: MemorySettings) -> MemoryEstimate:
    """Peak GPU memory of fine-tuning `checkpoint` under `settings`, without a GPU and without its weights.

    The real step is traced on the meta device (`step`), by default on two shallow copies of the model from which the whole
    follows (`depth`), and replayed through PyTorch's allocator. What cannot be traced gets a closed form and a wide interval.
    Raises SettingsError or CheckpointError in one sentence for what cannot be.
    """
    settings.check(checkpoint)
    adapter = settings.adapter(checkpoint)
    try:
        return _traced(checkpoint, settings, adapter)
    except WorkbenchError:
        raise
    except Exception as error:
        from analyzers.memory.closed_form import closed_form

        return closed_form(checkpoint, settings, adapter, why=_first_line(error))


def _traced(checkpoint: Checkpoint, settings: MemorySettings, adapter) -> MemoryEstimate:
    from analyzers.memory.depth import average_ranks, extrapolate, shallow, with_depth
    from analyzers.memory.profile import profile
    from analyzers.memory.step import record_steps

    depths = None if settings.full_trace else shallow(checkpoint)
    if depths is None:
        found = profile(*record_steps(checkpoint, settings, adapter))
        width, reasons = TRACED, [f"Every layer was traced: ±{TRACED:.0%} for versions, kernels and fragmentation."]
        peak, reserved, how = found.peak, found.reserved, "traced"
    else:
        adapter, averaged = average_ranks(adapter)
        low, high = (
            profile(*record_steps(with_depth(checkpoint, depth), settings, adapter)) for depth in (depths.low, depths.high)
        )
        peak, reserved = extrapolate(low, high, depths)
        width = TRACED + EXTRAPOLATED + (AVERAGED if averaged else 0)
        how = "extrapolated"
        reasons = [
            f"Traced with {depths.low} and {depths.high} of {depths.full} layers, the rest follows: ±{width:.0%} for versions, "
            "kernels and fragmentation."
        ]
        if averaged:
            reasons.append("The plan's ranks were averaged over layers; trace in full for the exact figure.")
    if settings.quantize:
        width += QUANTIZED
        reasons.append(f"The {settings.quantize} kernels of bitsandbytes are modelled, not traced: ±{QUANTIZED:.0%} more.")
    return finished(peak.allocated, reserved, peak.parts, width, how, reasons)


def finished(
    allocated: int, reserved: int, parts: dict[tuple[str, str], float], width: float, how: str, reasons: list[str]
) -> MemoryEstimate:
    """An estimate from its pieces. width: half of the interval as a share of the reserved peak."""
    from analyzers.memory.parts import PARTS

    details = {label: round(size) for label, size in sorted(parts.items(), key=lambda item: -item[1])}
    breakdown = {part: sum(size for (of, _), size in details.items() if of == part) for part in PARTS}
    breakdown["temporaries"] += allocated - sum(breakdown.values())  # rounding of extrapolated parts: a few bytes
    interval = (round(reserved * (1 - width)), round(reserved * (1 + width)))
    return MemoryEstimate(allocated, reserved, interval, breakdown, details, how=how, reasons=tuple(reasons))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
