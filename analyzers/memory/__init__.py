"""GPU memory of a fine-tune, without a GPU: the real step traced on the meta device, replayed through PyTorch's allocator.

>>> from sample_models import open_model
>>> from analyzers.memory import MemorySettings, estimate_memory
>>> estimate = estimate_memory(open_model("roberta-large"), MemorySettings(method="lora-xs", rank=16, batch=32, sequence=128))
>>> sum(estimate.breakdown.values()) == estimate.peak_allocated
True
"""

from analyzers.memory.advice import what_decides
from analyzers.memory.answer import MemoryEstimate
from analyzers.memory.estimate import estimate_memory
from analyzers.memory.fitting import Fit, fit, fit_methods
from analyzers.memory.gpus import CONTEXT, GPUS, Gpu, find_gpu
from analyzers.memory.remedies import Remedy, gain, remedies, usual_length
from analyzers.memory.settings import QUANTIZE, TASKS, MemorySettings
from analyzers.optimizers import OPTIMIZERS

__all__ = [
    "CONTEXT",
    "GPUS",
    "Gpu",
    "MemoryEstimate",
    "MemorySettings",
    "OPTIMIZERS",
    "QUANTIZE",
    "Remedy",
    "TASKS",
    "Fit",
    "estimate_memory",
    "find_gpu",
    "fit",
    "fit_methods",
    "gain",
    "remedies",
    "usual_length",
    "what_decides",
]
