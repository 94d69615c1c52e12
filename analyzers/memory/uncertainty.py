"""How far from an estimate the reserved peak may lie, told from what is uncertain in these very settings.

Every cause has a width below and one above the estimate, as shares of it, and a sentence. Widths add up: the causes are few, and
none is known to make up for another. `benchmarks/memory_accuracy.py` says how many public measurements lie inside, and how many
would if the widths were scaled by the other sources alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from analyzers.memory.distributed import LABELS
from analyzers.memory.optimizer_rules import projected_rank
from analyzers.memory.settings import text_config
from analyzers.optimizers import LOW_RANK
from analyzers.words import gib_text

if TYPE_CHECKING:
    from analyzers.memory.peak import Profile
    from analyzers.memory.settings import MemorySettings
    from analyzers.memory.whole_model import Recording
    from loraxs_core.checkpoint import Checkpoint

TRACED = 0.03  # versions and kernels
FRAGMENTED = 0.5  # of what the allocator holds in vain: earlier batches of other lengths leave other holes
SHORTER = 0.1  # a batch padded to its own longest sequence need not reach the longest allowed
AVERAGED = 0.01
QUANTIZED = 0.03
ROUTED = 0.05
VERSION = 0.03
# (below, above). FSDP frees what it gathers on another stream, where it is used again later or not at all, and NCCL has buffers of
# its own: nvidia-smi shows up to half more than PyTorch's allocator would hold without them.
SHARDED = {"ddp": (0.03, 0.03), "zero2": (0.08, 0.08), "zero3": (0.10, 0.15), "fsdp": (0.08, 0.25)}
TOKENS = ("activations", "attention", "loss_head")  # parts that grow with the tokens


@dataclass(frozen=True)
class Cause:
    """Something uncertain. below, above: shares of the reserved peak. sentence: what it is, without the widths."""

    below: float
    above: float
    sentence: str

    def __str__(self) -> str:
        low, high = (f"{100 * share:.0f} %" for share in (self.below, self.above))
        width = f"±{low}" if low == high else f"−{low}, +{high}"
        return f"{self.sentence}: {width}."


def causes(checkpoint: Checkpoint, settings: MemorySettings, recording: Recording, found: Profile) -> list[Cause]:
    """What is uncertain in the estimate `found` of `settings`, the trace itself first."""
    held = found.reserved - found.least
    holes = FRAGMENTED * max(0, found.reserved - found.allocated) / found.reserved
    traced = (
        f"Traced with {recording.recorded} of {recording.layers} layers, one of them repeated"
        if recording.recorded
        else "Every layer was traced"
    )
    result = [
        Cause(
            TRACED + held / found.reserved * FRAGMENTED,
            TRACED + holes,
            f"{traced}; versions, kernels, and {gib_text(found.reserved - found.allocated)} that PyTorch holds in vain",
        )
    ]
    if settings.padded and settings.sequence > 1:
        grows = sum(size for (part, _), size in found.parts.items() if part in TOKENS) / found.reserved
        result.append(Cause(SHORTER * grows, 0.0, "A batch padded to its own longest sequence may be shorter"))
    if recording.averaged:
        result.append(Cause(AVERAGED, AVERAGED, "The plan's ranks were averaged over layers, which a full trace keeps apart"))
    if settings.gpus > 1:
        kind = settings.sharding or "ddp"
        result.append(
            Cause(
                *SHARDED[kind],
                f"{LABELS[kind]} over {settings.gpus} GPUs, each with its own batch: communication is modelled, not traced",
            )
        )
    if settings.quantize:
        result.append(Cause(QUANTIZED, QUANTIZED, f"The {settings.quantize} kernels of bitsandbytes are modelled, not traced"))
    if is_routed(checkpoint):
        result.append(Cause(ROUTED, ROUTED, "How many tokens each expert gets is not known beforehand"))
    if settings.transformers_version or settings.torch_version:
        said = " and ".join(
            f"{name} {version}"
            for name, version in (("transformers", settings.transformers_version), ("PyTorch", settings.torch_version))
            if version
        )
        result.append(Cause(VERSION, VERSION, f"Of {said} the known differences are modelled, and the installed code traced"))
    return result


def is_routed(checkpoint: Checkpoint) -> bool:
    """Whether the model has experts among which tokens are routed."""
    return any(text_config(checkpoint).get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts"))


def remarks(checkpoint: Checkpoint, settings: MemorySettings) -> list[str]:
    """What the settings take for granted that a user may not, in sentences without widths."""
    said = []
    if settings.quantize:
        if not settings.kbit_prepared and settings.base_dtype != "fp32":
            kept = sum(weight.parameters for weight in checkpoint.weights if not weight.is_adaptable and not weight.tied_to)
            said.append(
                f"Embeddings and head are taken to stay in {settings.base_dtype}; PEFT's prepare_model_for_kbit_training casts them to "
                f"fp32, which adds {gib_text(2 * kept)} (kbit_prepared)."
            )
        if is_routed(checkpoint) and not settings.software.linear_experts:
            said.append(
                f"Since transformers 5 all experts of a layer are one tensor, which bitsandbytes leaves in {settings.base_dtype} (base_dtype); until 4.x they were "
                "quantised (transformers_version)."
            )
    if settings.optimizer.startswith("paged-"):
        said.append("Paged optimizer states are counted as none on the GPU: they leave it when it is full.")
    if settings.optimizer in LOW_RANK:
        modules = settings.optim_target_modules
        said.append(
            f"{settings.optimizer} is taken to project {modules if isinstance(modules, str) else ', '.join(modules)} to rank "
            f"{projected_rank(settings.optim_args)} (optim_target_modules, optim_args); a new projection is made in the step that counts."
        )
        if "galore" in settings.optimizer:
            said.append("cuSOLVER's workspace for GaLore's singular vectors is not counted.")
    if settings.optimizer.startswith("adamw-torchao"):
        said.append("torchao's compiled step is taken to hold nothing besides the states.")
    if settings.preference:
        said.append(f"A batch of {settings.batch} is as many pairs: {settings.rows[0]} sequences go through the model at once.")
    if settings.eval_predictions > (settings.eval_batch or 0):
        said.append(
            "Predictions that wait are copied to a longer tensor at each step of the evaluation, and what they leave is held in vain until "
            "the GPU is full; eval_accumulation_steps or preprocess_logits_for_metrics keep fewer."
        )
    if settings.loss == "liger":
        said.append("Of Liger's kernels the fused loss is counted; its other kernels, which save activations, are not.")
    if settings.offload_activations:
        said.append(
            "Activations leave as TRL's activation_offloading moves them: the last five are still on their way, and what several layers "
            "save in a row stays on the GPU."
        )
    return said
