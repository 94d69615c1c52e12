"""GPU memory from formulas alone: the last resort for models and methods that cannot be traced.

Bytes a token and layer for a Llama-like layer in 16 bit with a frozen base: 8 h for the residual stream and norms, 4 q + 4 k for
attention without a mask (8 q with one), 6 f for the gated MLP, 4 a head for the softmax's statistics; h, q, k, f being the
widths of the stream, queries, keys and MLP. Adapters add what autograd keeps of their inputs. Against traced steps it is off by
up to 7 % in bf16 and 23 % with a 4-bit base, hence the wide interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyzers.memory.answer import MemoryEstimate, finished
from analyzers.memory.settings import MemorySettings, text_config
from analyzers.methods import METHODS
from analyzers.methods.saved import Module
from analyzers.storage.tensors import adapter_tensors
from analyzers.words import whole_percent
from loraxs_core.errors import SettingsError
from loraxs_core.targets import select_targets

if TYPE_CHECKING:
    from analyzers.methods import AdapterSpec
    from loraxs_core.checkpoint import Checkpoint, Weight

WIDTH = 0.20
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
OPTIMIZER_BYTES = {
    "adamw": 12, "adamw-loop": 8, "adamw-fused": 8, "adamw-8bit": 2.03, "paged-adamw": 0, "paged-adamw-8bit": 0.03, "adafactor": 4.1,
    "sgd": 0, "paged-lion": 0, "paged-lion-8bit": 0.02, "rmsprop-bnb": 4, "rmsprop-8bit": 1.02, "paged-ademamix": 0,
    "paged-ademamix-8bit": 0.05, "adamw-torchao-8bit": 2.03, "adamw-torchao-4bit": 1.03, "adamw-anyprecision": 8, "lion": 4, "lion-8bit": 1.02, "adagrad": 8, "rmsprop": 8, "ademamix": 12, "ademamix-8bit": 3.05,
}  # fmt: skip
FRAGMENTATION = 1.04  # reserved over allocated, the median over traced fine-tunes


def closed_form(checkpoint: Checkpoint, settings: MemorySettings, adapter: AdapterSpec | None, why: str) -> MemoryEstimate:
    """The estimate from formulas. why: what kept the model from being traced, for the user."""
    if settings.optimizer not in OPTIMIZER_BYTES or settings.preference:
        what = settings.preference or settings.optimizer
        raise SettingsError(
            f"{checkpoint.name} with {settings.method} cannot be traced ({why.rstrip('.')}), and no formula stands for {what}."
        )
    base, trained_bytes = BYTES[settings.base_dtype], BYTES[settings.adapter_dtype]
    tokens = settings.batch * settings.sequence
    config = text_config(checkpoint)
    targets: list[Weight] = []
    if adapter is not None:
        names = None if settings.plan is None else list(settings.plan.ranks)
        targets = select_targets(checkpoint, names or settings.targets)
    held, trained, saved = _adapter(checkpoint, settings, adapter, targets, trained_bytes)
    weights = sum(weight.parameters * _weight_bytes(weight, settings, base) for weight in checkpoint.weights)
    if settings.method == "full":
        trained, trained_bytes = checkpoint.parameters, base
        saved = sum(weight.shape[1] for weight in checkpoint.linear) * base
    elif settings.method == "head-only":
        trained = sum(weight.parameters for weight in checkpoint.weights if weight.role == "head") or settings.labels * 1024
    attention, rest, stream = _layer_bytes(checkpoint, settings, base)
    layers = max(1, checkpoint.layers)
    if settings.method == "head-only":
        layers = attention = rest = saved = 0
    if settings.gradient_checkpointing and layers:
        rest, attention = layers * stream + rest, attention
        saved /= layers
    else:
        rest, attention = layers * rest, layers * attention
    vocabulary = int(config.get("vocab_size") or 0)
    logits = 14 * vocabulary if settings.task_type(checkpoint) != "SEQ_CLS" else 0
    parts = {
        ("weights", "base"): weights,
        ("adapters", settings.method): held,
        ("gradients", "all"): trained * trained_bytes,
        ("optimizer", settings.optimizer): trained * OPTIMIZER_BYTES[settings.optimizer],
        ("activations", "layers"): tokens * (rest + saved),
        ("attention", "layers"): tokens * attention,
        ("loss_head", "logits and loss"): tokens * logits,
    }
    parts = {label: round(size) for label, size in parts.items()}
    allocated = sum(parts.values())
    reasons = [
        f"{checkpoint.name} with {settings.method} cannot be traced ({why.rstrip('.')}), so this is a closed form: ±{whole_percent(WIDTH)}."
    ]
    if settings.gpus > 1:
        reasons.append(f"It is what one GPU alone would need: what {settings.gpus} GPUs share is not taken off.")
    return finished(allocated, round(allocated * FRAGMENTATION), parts, (WIDTH, WIDTH), "closed form", reasons)


def _weight_bytes(weight: Weight, settings: MemorySettings, base: int) -> float:
    if settings.quantize is None or not weight.is_adaptable:
        return base if weight.tied_to is None else 0
    if settings.quantize == "8bit":
        return 1.0
    return 0.5 + (1 / 64 + 4 / (64 * 256) if settings.double_quantization else 4 / 64)


def _adapter(
    checkpoint: Checkpoint, settings: MemorySettings, adapter: AdapterSpec | None, targets: list[Weight], bytes_each: int
) -> tuple[float, int, float]:
    """(bytes held, trained numbers, bytes a token that autograd keeps for it) over all adapted layers."""
    if adapter is None:
        return 0.0, 0, 0.0
    method = METHODS[settings.method]
    modules = [Module(weight.name, *weight.shape, adapter.ranks.get(weight.name, adapter.rank)) for weight in targets]
    kept = sum(method.kept(module, bytes_each, settings.dropout) for module in modules)
    try:
        written = adapter_tensors(checkpoint, method.complete(adapter), modules, "float32", None)
        trained, frozen = sum(tensor.numbers for tensor in written.trained), written.shared
    except SettingsError:  # no rule, and PEFT cannot build it on this model: what most methods are made of
        trained, frozen = sum(module.rank * (module.inner + module.out) for module in modules), 0
    return trained * bytes_each + frozen * BYTES[settings.base_dtype], trained, kept


def _layer_bytes(checkpoint: Checkpoint, settings: MemorySettings, base: int) -> tuple[float, float, float]:
    """(attention, everything else, the stream alone) in bytes a token that one layer keeps for the backward pass."""
    config = text_config(checkpoint)
    width = int(config.get("hidden_size") or config.get("n_embd") or config.get("d_model") or 1024)
    heads = int(config.get("num_attention_heads") or config.get("n_head") or config.get("num_heads") or 16)
    head = int(config.get("head_dim") or width // heads)
    query, key = heads * head, int(config.get("num_key_value_heads") or heads) * head
    inner = int(config.get("intermediate_size") or config.get("n_inner") or config.get("d_ff") or 4 * width)
    scale = base / 2
    attention = (8 * query if settings.padded else 4 * query + 4 * key) * scale + 4 * heads
    return attention, (8 * width + 6 * inner) * scale, base * width
