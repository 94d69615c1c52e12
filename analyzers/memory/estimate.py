"""`estimate_memory`: peak GPU memory of a fine-tune, with what it is made of, how sure it is, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyzers.memory import cache
from analyzers.memory.answer import MemoryEstimate, finished
from analyzers.memory.closed_form import closed_form
from analyzers.memory.distributed import LABELS, Sharding, one_gpu
from analyzers.memory.peak import profile
from analyzers.memory.settings import MemorySettings, text_config
from analyzers.words import gib_text, whole_percent
from loraxs_core.errors import SettingsError, WorkbenchError, one_line

if TYPE_CHECKING:
    from analyzers.methods import AdapterSpec
    from loraxs_core.checkpoint import Checkpoint

# Half-widths of the interval around the reserved peak, as shares of it, and their reasons.
TRACED = 0.03
AVERAGED = 0.01
QUANTIZED = 0.07
ROUTED = 0.05
WIDTH = {"ddp": 0.03, "zero2": 0.08, "zero3": 0.15, "fsdp": 0.08}


def estimate_memory(checkpoint: Checkpoint, settings: MemorySettings, *, use_cache: bool = True) -> MemoryEstimate:
    """Peak GPU memory of fine-tuning `checkpoint` under `settings`, without a GPU and without its weights.

    The real step is traced on the meta device (`training_step`), by default on a shallow copy of the model from which the whole follows
    (`shallow_copy`, `repeat_layers`), and replayed through PyTorch's allocator. What cannot be traced gets a closed form and a wide interval.
    use_cache: answer from disk what was asked before, and keep the answer. Raises SettingsError or CheckpointError in one sentence
    for what cannot be.
    """
    settings = settings.resolved(checkpoint)
    settings.check(checkpoint)
    adapter = settings.adapter(checkpoint)
    path = cache.path_of(checkpoint, settings) if use_cache else None
    estimate = cache.load(path) if path else None
    if estimate is None:
        try:
            estimate = _traced(checkpoint, settings, adapter)
        except WorkbenchError:
            raise
        except Exception as error:  # transformers, PEFT and PyTorch refuse in many ways what the meta device cannot run
            if settings.peft_config is not None:
                raise SettingsError(
                    f"{checkpoint.name} with {settings.label} cannot be traced without its numbers ({one_line(error).rstrip('.')}), and "
                    "no formula stands for it."
                ) from error
            estimate = closed_form(checkpoint, settings, adapter, why=one_line(error))
        if path:
            cache.save(path, estimate)
    return estimate


def _traced(checkpoint: Checkpoint, settings: MemorySettings, adapter: AdapterSpec | None) -> MemoryEstimate:
    from analyzers.memory.whole_model import record  # needs PyTorch

    recording = record(checkpoint, settings, adapter)
    trace, width = recording.trace, TRACED
    traced = f"Traced with {recording.recorded} of {recording.layers} layers, one of them repeated"
    reasons = [
        f"{traced if recording.recorded else 'Every layer was traced'}: ±{whole_percent(TRACED)} for versions, kernels and "
        "fragmentation."
    ]
    if recording.averaged:
        width += AVERAGED
        reasons.append(
            f"The plan's ranks were averaged over layers: ±{whole_percent(AVERAGED)} more; a full trace keeps them apart."
        )
    if settings.gpus > 1:
        sharding = _sharding(checkpoint, settings)
        trace = one_gpu(trace, sharding)
        width += WIDTH[sharding.kind]
        reasons.append(
            f"{LABELS[sharding.kind]} over {settings.gpus} GPUs, each with its own batch: buffers are modelled, ±{whole_percent(WIDTH[sharding.kind])} more."
        )
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
    found = profile(trace, empty_cache_between_steps=settings.empty_cache, expandable=settings.expandable_segments)
    how = "extrapolated" if recording.recorded else "traced"
    return finished(found.allocated, found.reserved, found.parts, width, how, reasons)


def _sharding(checkpoint: Checkpoint, settings: MemorySettings) -> Sharding:
    """How `settings` spread the fine-tune of `checkpoint`."""
    in_fp32 = settings.base_dtype == "fp32" or (settings.kbit_prepared and settings.quantize)
    trained = settings.adapter_dtype if settings.trains_adapter else settings.base_dtype
    held = 0
    if settings.gradient_checkpointing and settings.trains_adapter and settings.reentrant:
        rows, tokens = settings.rows
        width = int(text_config(checkpoint).get("hidden_size") or 0)
        held = rows * tokens * width * (4 if in_fp32 else 2)
    upcast = not settings.trains_adapter and settings.mixed_precision
    gathered = 0.5 if settings.mixed_precision and (in_fp32 or upcast) else 1.0
    trained_bytes = 4 if trained == "fp32" or upcast else 2
    return Sharding(settings.sharding or "ddp", settings.gpus, trained_bytes, gathered, held, not settings.gradient_checkpointing)
