"""The real fine-tune on the meta device as it stands before its first step: transformers' model, PEFT's adapter, bitsandbytes' layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import noop_context_fn

from analyzers.memory.flash_attention import FLASH
from analyzers.memory.preference import switch_dropout_off
from analyzers.memory.quantized import quantize_base
from analyzers.memory.separate_experts import separate_experts
from analyzers.memory.settings import DTYPES, MemorySettings, own_dtype
from analyzers.memory.trace import Layer
from analyzers.methods import METHODS, AdapterSpec, peft_config
from analyzers.methods.peft_configs import make_config
from analyzers.precision import kept_in_fp32
from loraxs_core.architecture import OWN, meta_model
from loraxs_core.errors import SettingsError
from loraxs_core.roles import role_of

if TYPE_CHECKING:
    from loraxs_core.checkpoint import Checkpoint

COPYING = ("LORA", "IA3")  # PEFT's types whose layer copies a 4-bit layer's output (peft/tuners/*/bnb.py)


@dataclass(frozen=True)
class Built:
    """A model on the meta device, ready for its first step.

    adapters: ids of the tensors that the method added. layers: path of each layer -> its stack and number. heads: paths of the output
    matrix or classifier. roots: paths of the modules around the transformer, which compute the loss. reference: a second model, of
    preference training; in the paths above it is called ``reference``.
    """

    model: nn.Module
    adapters: frozenset[int]
    layers: dict[str, Layer]
    heads: frozenset[str]
    roots: frozenset[str]
    reference: nn.Module | None = None

    def all_parts(self, kind: str) -> Iterator[tuple[str, Any]]:
        """What `kind` (``named_parameters``, …) says of the model, and of the reference under its path."""
        yield from getattr(self.model, kind)()
        if self.reference is not None:
            yield from getattr(self.reference, kind)(prefix="reference")


def build(
    checkpoint: Checkpoint,
    settings: MemorySettings,
    adapter: AdapterSpec | Mapping | None,
    *,
    checkpoint_contexts: Callable[[], tuple] = noop_context_fn,
) -> Built:
    """The model as it stands before the first step, on the meta device. checkpoint_contexts: see `CudaEmulation`."""
    model = _base_model(checkpoint, settings)
    if settings.software.linear_experts:
        separate_experts(model)
    heads = _heads(model)
    unquantised = heads | set(model._keep_in_fp32_modules or ())  # as transformers' quantizers leave them
    before = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    full = settings.method == "full" and adapter is None
    if not full:
        model.requires_grad_(False)
    if settings.kbit_prepared:
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
    prefix = ""
    if adapter is not None:
        model, prefix = _with_adapter(model, adapter, settings, settings.task_type(checkpoint)), "base_model.model."
    elif settings.method == "head-only":
        for head in heads:
            model.get_submodule(head).requires_grad_(True)
    added = frozenset(id(tensor) for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in before)
    for name, parameter in model.named_parameters():
        # PEFT casts what it adds and leaves modules that are trained whole as they are; FSDP shards what is trained in fp32.
        if parameter.requires_grad and parameter.is_floating_point():
            if id(parameter) in added and "modules_to_save" not in name:
                parameter.data = parameter.data.to(getattr(torch, DTYPES[settings.adapter_dtype]))
            if settings.sharding == "fsdp" and settings.mixed_precision:
                parameter.data = parameter.data.float()
    if settings.quantize:
        _quantize(model, settings, unquantised)
    if settings.gradient_checkpointing:
        _refuse_checkpointing(model, checkpoint)
        # As Trainer does it: frozen embeddings must hand on a gradient for the checkpointed layers to be differentiated.
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": checkpoint_contexts}
        )
        if not full:
            model.enable_input_require_grads()
    model.train()
    reference = _reference(checkpoint, settings, unquantised) if settings.preference else None
    if settings.preference:
        switch_dropout_off(model)
    return Built(
        model,
        added,
        _layers(model) | ({} if reference is None else _layers(reference, "reference.")),
        frozenset(f"{prefix}{head}" for head in heads),
        frozenset({"", "base_model", "base_model.model"} if prefix else {""}) | {"reference"},
        reference,
    )


def _reference(checkpoint: Checkpoint, settings: MemorySettings, unquantised: set[str]) -> nn.Module | None:
    """The second model of preference training, in the precision of the first; None where the adapter is switched off instead. Its
    parameters are not frozen: TRL leaves them as they were loaded, and autocast keeps its casts of them."""
    if settings.preference == "dpo-precomputed" or (settings.preference == "dpo" and settings.trains_adapter):
        return None
    model = _base_model(checkpoint, settings)
    if settings.quantize:
        _quantize(model, settings, unquantised)
    return model.eval()


def _quantize(model: nn.Module, settings: MemorySettings, skip: set[str]) -> None:
    computes_in = {"fp16": torch.float16}.get(settings.base_dtype or "", torch.bfloat16)
    quantize_base(
        model,
        settings.quantize or "",
        computes_in,
        double=settings.double_quantization,
        copies_output=_copies_output(settings),
        skip=skip,
    )


def _copies_output(settings: MemorySettings) -> bool:
    """Whether PEFT's layer copies what a 4-bit layer returns before it adds to it."""
    if settings.peft_config is not None:
        return settings.peft_config["peft_type"] in COPYING
    return METHODS[settings.method].copies_output


def _refuse_checkpointing(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raises SettingsError where transformers does not checkpoint this architecture: the training would not start either."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not getattr(inner, "supports_gradient_checkpointing", True):
        raise SettingsError(
            f"transformers has no gradient checkpointing for {checkpoint.model_type} models such as {checkpoint.name}; leave it out."
        )


def _base_model(checkpoint: Checkpoint, settings: MemorySettings) -> nn.Module:
    task = settings.task_type(checkpoint)
    replaced: dict[str, object] = {"use_cache": settings.use_cache}
    if task == "SEQ_CLS":
        # Said outright: some models look at the labels' values to find out.
        kind = "single_label_classification" if settings.labels > 1 else "regression"
        replaced |= {"num_labels": settings.labels, "problem_type": kind}
        if checkpoint.config.get("pad_token_id") is None:
            replaced["pad_token_id"] = 0
    if settings.attention:
        replaced["attn_implementation"] = FLASH if settings.attention == "flash_attention_2" else settings.attention
    try:
        model = meta_model(checkpoint, task, trust_remote_code=settings.trust_remote_code, **replaced)
    except SettingsError:
        own = (checkpoint.config.get("architectures") or [""])[0]
        if settings.task is not None or not str(own).endswith("ForConditionalGeneration"):
            raise
        # A model of images and text, which has no class for text alone: trained on text as the class that its config names.
        model = meta_model(checkpoint, OWN, trust_remote_code=settings.trust_remote_code, **replaced)
    dtype = getattr(torch, DTYPES[settings.base_dtype or own_dtype(checkpoint)])
    fp32 = kept_in_fp32(model, dtype)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if fp32(name) else dtype)
    return model


def _with_adapter(model: nn.Module, adapter: AdapterSpec | Mapping, settings: MemorySettings, task: str) -> nn.Module:
    from peft import get_peft_model

    if isinstance(adapter, Mapping):
        config = make_config(adapter, task)
    else:
        config = peft_config(replace(adapter, task_type=task))
    if getattr(config, "init_lora_weights", None) not in (None, True, False):  # it may look at numbers, which `meta` has not
        config.init_lora_weights = True  # an initialisation that needs no numbers; shapes, and so memory, are the same
    with torch.device("meta"):
        # Left to itself PEFT casts what a method adds to fp32, frozen parts included.
        wide = settings.adapter_dtype == "fp32"
        return get_peft_model(model, config, low_cpu_mem_usage=True, autocast_adapter_dtype=wide).to("meta")


def _layers(model: nn.Module, under: str = "") -> dict[str, Layer]:
    """Path -> (stack, number) of the layers: the members of lists of modules that lie in no other such list. under: the model's own
    path."""
    return {
        f"{under}{name}.{index}": (f"{under}{name}", index)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not any(part.isdigit() for part in name.split("."))
        for index in range(len(module))
    }


def _heads(model: nn.Module) -> set[str]:
    """Paths of the output matrix or classifier, which bitsandbytes leaves in full precision and a head-only fine-tune trains."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and role_of(name) == "head" and "pooler" not in name
    }
