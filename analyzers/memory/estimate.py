"""`estimate_memory`: peak GPU memory of a fine-tune, with what it is made of, how sure it is, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyzers.memory import cache
from analyzers.memory.answer import MemoryEstimate, finished
from analyzers.memory.closed_form import closed_form
from analyzers.memory.distributed import LABELS, WIDTH, one_gpu
from analyzers.memory.peak import profile
from analyzers.memory.settings import MemorySettings, text_config
from analyzers.words import gib_text, whole_percent
from loraxs_core.errors import WorkbenchError, one_line

if TYPE_CHECKING:
    from analyzers.methods import AdapterSpec
    from loraxs_core.checkpoint import Checkpoint

# Half-widths of the interval around the reserved peak, as shares of it, and their reasons.
TRACED = 0.03
AVERAGED = 0.01
QUANTIZED = 0.07
ROUTED = 0.05


def estimate_memory(checkpoint: Checkpoint, settings: MemorySettings, *, use_cache: bool = True) -> MemoryEstimate:
    """Peak GPU memory of fine-tuning `checkpoint` under `settings`, without a GPU and without its weights.

    The real step is traced on the meta device (`training_step`), by default on a shallow copy of the model from which the whole follows
    (`shallow_copy`, `repeat_layers`), and replayed through PyTorch's allocator. What cannot be traced gets a closed form and a wide interval.
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
            estimate = closed_form(checkpoint, settings, adapter, why=one_line(error))
        if key:
            cache.save(key, estimate, checkpoint.name, settings)
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
        sharding = settings.sharding or "ddp"
        trained = settings.base_dtype if settings.method == "full" else settings.adapter_dtype
        trace = one_gpu(trace, sharding, settings.gpus, trained_dtype_bytes=4 if trained == "fp32" else 2)
        width += WIDTH[sharding]
        reasons.append(
            f"{LABELS[sharding]} over {settings.gpus} GPUs, each with its own batch: buffers are modelled, ±{whole_percent(WIDTH[sharding])} more."
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
    found = profile(trace)
    how = "extrapolated" if recording.recorded else "traced"
    return finished(found.allocated, found.reserved, found.parts, width, how, reasons)
