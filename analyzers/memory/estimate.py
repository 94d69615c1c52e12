"""`estimate_memory`: peak GPU memory of a fine-tune, with what it is made of, how sure it is, and why."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from analyzers.memory import cache
from analyzers.memory.gpus import CONTEXT
from analyzers.memory.settings import MemorySettings, text_config
from analyzers.words import gib_text, whole_percent
from loraxs_core.errors import WorkbenchError, one_line

if TYPE_CHECKING:
    from analyzers.memory.recorder import Trace
    from analyzers.memory.step import OldRuntime
    from analyzers.methods import AdapterSpec
    from loraxs_core.checkpoint import Checkpoint

GIB = 2**30
# Half-widths of the interval around the reserved peak, as shares of it, and their reasons.
TRACED = 0.03
AVERAGED = 0.01
QUANTIZED = 0.07
ROUTED = 0.05


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


def estimate_memory(checkpoint: Checkpoint, settings: MemorySettings, *, use_cache: bool = True) -> MemoryEstimate:
    """Peak GPU memory of fine-tuning `checkpoint` under `settings`, without a GPU and without its weights.

    The real step is traced on the meta device (`step`), by default on a shallow copy of the model from which the whole follows
    (`depth`, `repeat`), and replayed through PyTorch's allocator. What cannot be traced gets a closed form and a wide interval.
    use_cache: answer from disk what was asked before, and keep the answer. Raises SettingsError or CheckpointError in one sentence
    for what cannot be.
    """
    settings.check(checkpoint)
    adapter = settings.adapter(checkpoint)
    key = cache.key(checkpoint, settings) if use_cache else None
    estimate = cache.load(key) if key else None
    if estimate is None:
        try:
            estimate = _traced(checkpoint, settings, adapter)
        except WorkbenchError:
            raise
        except Exception as error:  # transformers, PEFT and PyTorch refuse in many ways what the meta device cannot run
            from analyzers.memory.closed_form import closed_form

            estimate = closed_form(checkpoint, settings, adapter, why=one_line(error))
        if key:
            cache.save(key, estimate, checkpoint.name, settings)
    return estimate


def _traced(checkpoint: Checkpoint, settings: MemorySettings, adapter: AdapterSpec | None) -> MemoryEstimate:
    from analyzers.memory.profile import profile

    trace, how, reasons = record(checkpoint, settings, adapter)
    width = TRACED
    if settings.gpus > 1:
        from analyzers.memory.distributed import LABELS, WIDTH, one_gpu

        sharding = settings.sharding or "ddp"
        trained = settings.base_dtype if settings.method == "full" else settings.adapter_dtype
        trace = one_gpu(trace, sharding, settings.gpus, trained_dtype_bytes=4 if trained == "fp32" else 2)
        width += WIDTH[sharding]
        reasons.append(
            f"{LABELS[sharding]} over {settings.gpus} GPUs, each with its own batch: buffers are modelled, ±{whole_percent(WIDTH[sharding])} more."
        )
    found = profile(trace)
    reasons[0] += f": ±{whole_percent(TRACED)} for versions, kernels and fragmentation."
    if any("averaged" in reason for reason in reasons):
        width += AVERAGED
    if settings.quantize:
        width += QUANTIZED
        reasons.append(
            f"The {settings.quantize} kernels of bitsandbytes are modelled, not traced: ±{whole_percent(QUANTIZED)} more."
        )
        if settings.base_dtype != "fp32":
            kept = sum(weight.parameters for weight in checkpoint.weights if not weight.is_adaptable and not weight.tied_to)
            reasons.append(
                f"Embeddings and head are taken to stay in {settings.base_dtype}; PEFT's prepare_model_for_kbit_training casts them "
                f"to fp32, which adds {gib_text(2 * kept)}."
            )
    if any(text_config(checkpoint).get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
        width += ROUTED
        reasons.append(f"How many tokens each expert gets is not known beforehand: ±{whole_percent(ROUTED)} more.")
    return finished(found.allocated, found.reserved, found.parts, width, how, reasons)


def record(
    checkpoint: Checkpoint, settings: MemorySettings, adapter: AdapterSpec | None, runtime: OldRuntime | None = None
) -> tuple[Trace, str, list[str]]:
    """The recording of two steps of the whole model, ``traced`` or ``extrapolated``, and what to say about it."""
    from analyzers.memory.batches import recording
    from analyzers.memory.depth import average_ranks, repetition, with_depth
    from analyzers.memory.repeat import Irregular, repeat_layers
    from analyzers.memory.step import CURRENT

    trusted = settings.trust_remote_code
    plan = None if settings.full_trace else repetition(checkpoint, trust_remote_code=trusted)
    if plan is not None:
        alike, averaged = average_ranks(adapter)
        few = with_depth(checkpoint, plan.depth, trust_remote_code=trusted)
        shallow = recording(few, settings, alike, runtime or CURRENT)
        with contextlib.suppress(Irregular):
            reasons = [f"Traced with {plan.depth} of {plan.depth + plan.extra} layers, one of them repeated"]
            if averaged:
                reasons.append(
                    f"The plan's ranks were averaged over layers: ±{whole_percent(AVERAGED)} more; a full trace keeps them apart."
                )
            return repeat_layers(shallow, plan), "extrapolated", reasons
    return recording(checkpoint, settings, adapter, runtime or CURRENT), "traced", ["Every layer was traced"]


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
