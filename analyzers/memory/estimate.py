"""`estimate_memory`: peak GPU memory of a fine-tune, with what it is made of, how sure it is, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analyzers.memory import cache
from analyzers.memory.answer import MemoryEstimate, finished
from analyzers.memory.closed_form import closed_form
from analyzers.memory.distributed import Sharding, one_gpu
from analyzers.memory.peak import profile
from analyzers.memory.settings import MemorySettings, text_config
from analyzers.memory.uncertainty import causes, remarks
from loraxs_core.errors import SettingsError, WorkbenchError, one_line

if TYPE_CHECKING:
    from analyzers.methods import AdapterSpec
    from loraxs_core.checkpoint import Checkpoint


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
    key = cache.key(checkpoint, settings) if use_cache else None
    estimate = cache.load(key) if key else None
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
        if key:
            cache.save(key, estimate, checkpoint.name, settings)
    return estimate


def _traced(checkpoint: Checkpoint, settings: MemorySettings, adapter: AdapterSpec | Mapping | None) -> MemoryEstimate:
    from analyzers.memory.whole_model import record  # needs PyTorch

    recording = record(checkpoint, settings, adapter)
    trace = one_gpu(recording.trace, _sharding(checkpoint, settings)) if settings.gpus > 1 else recording.trace
    found = profile(trace, empty_cache_between_steps=settings.empty_cache, expandable=settings.expandable_segments)
    uncertain = causes(checkpoint, settings, recording, found)
    width = sum(one.below for one in uncertain), sum(one.above for one in uncertain)
    reasons = [*map(str, uncertain), *settings.notes(checkpoint), *remarks(checkpoint, settings)]
    how = "extrapolated" if recording.recorded else "traced"
    return finished(found.allocated, found.reserved, found.parts, width, how, reasons, least=found.least)


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
    return Sharding(
        settings.sharding or "ddp", settings.gpus, trained_bytes, gathered, held, not settings.gradient_checkpointing
    )
