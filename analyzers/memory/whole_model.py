"""The recording of two steps of the whole model: of every layer, or of few layers from which the whole follows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analyzers.memory.batch_growth import recording
from analyzers.memory.repeat_layers import Irregular, repeat_layers
from analyzers.memory.shallow_copy import average_ranks, repetition, with_depth
from analyzers.methods.peft_configs import of_single_layers

if TYPE_CHECKING:
    from analyzers.memory.settings import MemorySettings
    from analyzers.memory.trace import Trace
    from analyzers.methods import AdapterSpec
    from loraxs_core.checkpoint import Checkpoint


@dataclass(frozen=True)
class Recording:
    """trace: of the whole model. recorded: how many layers of each stack were run, of `layers`; None when all were. averaged: a
    plan's ranks were averaged over layers to make them alike."""

    trace: Trace
    recorded: int | None = None
    layers: int | None = None
    averaged: bool = False


def record(checkpoint: Checkpoint, settings: MemorySettings, adapter: AdapterSpec | Mapping | None) -> Recording:
    """Two optimizer steps of `checkpoint` under `settings`, adapter as given. Raises what `training_step.record_steps` raises."""
    trusted = settings.trust_remote_code
    by_layer = isinstance(adapter, Mapping) and of_single_layers(adapter)
    # Of checkpointed layers little is saved, so that what is on its way to the CPU is of more layers than are recorded.
    across_layers = settings.offload_activations and settings.gradient_checkpointing
    plan = None if settings.full_trace or by_layer or across_layers else repetition(checkpoint, trust_remote_code=trusted)
    if plan is not None:
        alike, averaged = average_ranks(adapter)
        few = with_depth(checkpoint, plan.depth, trust_remote_code=trusted)
        shallow = recording(few, settings, alike)
        with contextlib.suppress(Irregular):
            return Recording(repeat_layers(shallow, plan), plan.depth, plan.depth + plan.extra, averaged)
    return Recording(recording(checkpoint, settings, adapter))
