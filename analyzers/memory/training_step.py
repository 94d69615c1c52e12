"""Builds the real fine-tune (transformers + PEFT + optimizer) on the meta device and records two of its steps.

Two steps, because the optimizer's states are born in the first one and weigh on the second.
"""

from __future__ import annotations

import gc
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import noop_context_fn

from analyzers.memory.cuda_emulation import CudaEmulation
from analyzers.memory.optimizers import make_optimizer
from analyzers.memory.quantized import quantize_base
from analyzers.memory.recorder import Recorder
from analyzers.memory.settings import DTYPES, MemorySettings
from analyzers.memory.trace import Layer, Trace
from analyzers.methods import METHODS, AdapterSpec, peft_config
from analyzers.precision import kept_in_fp32
from loraxs_core.architecture import OWN, meta_model
from loraxs_core.errors import SettingsError
from loraxs_core.roles import role_of

if TYPE_CHECKING:
    from loraxs_core.checkpoint import Checkpoint

# cuBLAS takes its workspace from PyTorch's allocator: 8,519,680 bytes by default (CUDABlas.cpp, getChosenWorkspaceSize),
# 32 MiB on Hopper and later.
CUBLAS_WORKSPACE = 8_519_680
STEPS = 2
MICRO_BATCHES = 2  # of one step that are recorded: from the second on gradients are there, and all others are like it

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class OldRuntime:
    """What PyTorch and transformers of 2022 did otherwise; used to score the estimator on measurements of that time."""

    softmax_keeps_input: bool = False
    keeps_gradients: bool = False  # zero_grad filled gradients with zeros and kept them
    float_logits: bool = False  # causal models returned logits in fp32 and copied them once more for the loss (to 4.44)


CURRENT = OldRuntime()


@dataclass(frozen=True)
class Built:
    """A model on the meta device, ready for its first step.

    adapters: ids of the tensors that the method added. layers: path of each layer -> its stack and number. heads: paths of the output
    matrix or classifier. roots: paths of the modules around the transformer, which compute the loss.
    """

    model: nn.Module
    adapters: frozenset[int]
    layers: dict[str, Layer]
    heads: frozenset[str]
    roots: frozenset[str]


def record_steps(
    checkpoint: Checkpoint, settings: MemorySettings, adapter: AdapterSpec | None, runtime: OldRuntime = CURRENT
) -> Trace:
    """The recording of two optimizer steps of `checkpoint` under `settings`, adapter as given.

    Raises whatever transformers, PEFT or PyTorch raise for what they cannot build or run on the meta device.
    """
    with _one_at_a_time, _no_collection(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        emulation = CudaEmulation(
            padding=settings.padded,
            autocast=torch.bfloat16 if settings.mixed_precision else None,
            softmax_keeps_input=runtime.softmax_keeps_input,
        )
        built = build(checkpoint, settings, adapter, checkpoint_contexts=emulation.checkpoint_contexts)
        return _record(built, checkpoint, settings, runtime, emulation)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps Python's cycle collector out: when it comes by is chance, what it would free is no part of the step, and it is slow."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def build(
    checkpoint: Checkpoint,
    settings: MemorySettings,
    adapter: AdapterSpec | None,
    *,
    checkpoint_contexts: Callable[[], tuple] = noop_context_fn,
) -> Built:
    """The model as it stands before the first step, on the meta device. checkpoint_contexts: see `CudaEmulation`."""
    model = _base_model(checkpoint, settings)
    heads = _heads(model)
    unquantised = heads | set(model._keep_in_fp32_modules or ())  # as transformers' quantizers leave them
    base_dtype = getattr(torch, DTYPES[settings.base_dtype])
    before = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    if settings.method != "full":
        model.requires_grad_(False)
    prefix = ""
    if adapter is not None:
        model, prefix = _with_adapter(model, adapter, settings.task_type(checkpoint)), "base_model.model."
    elif settings.method == "head-only":
        for head in heads:
            model.get_submodule(head).requires_grad_(True)
    added = frozenset(id(tensor) for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in before)
    if settings.method != "full":
        trained_dtype = getattr(torch, DTYPES[settings.adapter_dtype])
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(trained_dtype)
    if settings.quantize:
        quantize_base(
            model,
            settings.quantize,
            torch.bfloat16 if settings.base_dtype == "fp32" else base_dtype,
            double=settings.double_quantization,
            copies_output=METHODS[settings.method].copies_output,
            skip=unquantised,
        )
    if settings.gradient_checkpointing:
        _refuse_checkpointing(model, checkpoint)
        # As Trainer does it: frozen embeddings must hand on a gradient for the checkpointed layers to be differentiated.
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": checkpoint_contexts}
        )
        if settings.method != "full":
            model.enable_input_require_grads()
    model.train()
    return Built(
        model,
        added,
        _layers(model),
        frozenset(f"{prefix}{head}" for head in heads),
        frozenset({"", "base_model", "base_model.model"} if prefix else {""}),
    )


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
        replaced["attn_implementation"] = settings.attention
    try:
        model = meta_model(checkpoint, task, trust_remote_code=settings.trust_remote_code, **replaced)
    except SettingsError:
        own = (checkpoint.config.get("architectures") or [""])[0]
        if settings.task is not None or not str(own).endswith("ForConditionalGeneration"):
            raise
        # A model of images and text, which has no class for text alone: trained on text as the class that its config names.
        model = meta_model(checkpoint, OWN, trust_remote_code=settings.trust_remote_code, **replaced)
    dtype = getattr(torch, DTYPES[settings.base_dtype])
    fp32 = kept_in_fp32(model, dtype)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if fp32(name) else dtype)
    return model


def _with_adapter(model: nn.Module, adapter: AdapterSpec, task: str) -> nn.Module:
    from peft import get_peft_model

    config = peft_config(replace(adapter, task_type=task))
    if getattr(config, "init_lora_weights", None) not in (None, True, False):
        config.init_lora_weights = True  # an initialisation that needs no numbers; shapes, and so memory, are the same
    with torch.device("meta"):
        return get_peft_model(model, config, low_cpu_mem_usage=True).to("meta")


def _layers(model: nn.Module) -> dict[str, Layer]:
    """Path -> (stack, number) of the layers: the members of lists of modules that lie in no other such list."""
    return {
        f"{name}.{index}": (name, index)
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


def _record(
    built: Built, checkpoint: Checkpoint, settings: MemorySettings, runtime: OldRuntime, emulation: CudaEmulation
) -> Trace:
    model = built.model
    recorder = Recorder()
    recorder.trace.roots = built.roots
    _adopt_weights(built, recorder)
    recorder.hold(CUBLAS_WORKSPACE, "temporaries")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(settings.optimizer, trained)
    for group in optimizer.param_groups:
        group["params"] = recorder.announcing(group["params"])
    if runtime.float_logits:
        _use_old_loss(model)
    with emulation.taking_autocast(), _module_hooks(built, recorder), emulation, recorder:
        for _ in range(STEPS):
            for _ in range(min(settings.gradient_accumulation, MICRO_BATCHES)):
                recorder.enter("inputs")
                batch = _batch(checkpoint, settings)
                recorder.enter("forward")
                outputs = model(**batch)
                loss = outputs.loss
                emulation.leave_autocast()
                if not settings.keep_logits:
                    del outputs
                recorder.enter("loss-backward")
                # Through its edge: given the tensor, PyTorch would leave the emulation while checkpointed layers are recomputed.
                torch.autograd.backward(torch.autograd.graph.get_gradient_edge(loss), torch.ones_like(loss))
                recorder.enter("between")
                outputs = loss = batch = None
                for parameter in trained:
                    if parameter.grad is not None:
                        recorder.label(parameter.grad, "gradients")
            recorder.enter("clip")
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            recorder.enter("optimizer")
            optimizer.step()
            for state in optimizer.state.values():
                for value in state.values():
                    if isinstance(value, torch.Tensor):
                        recorder.label(value, "optimizer")
            recorder.enter("zero-grad")
            optimizer.zero_grad(set_to_none=not runtime.keeps_gradients)
        recorder.enter("end")
    return recorder.trace


def _use_old_loss(model: nn.Module) -> None:
    """The causal models' loss as transformers computed it in 2024: all logits in fp32, kept with the outputs, and a shifted copy."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = inner.forward

    def with_old_loss(*args: Any, labels, **kwargs: Any):
        outputs = forward(*args, **kwargs)
        outputs.logits = outputs.logits.float()
        shifted = outputs.logits[..., :-1, :].contiguous()
        outputs.loss = nn.functional.cross_entropy(shifted.view(-1, shifted.shape[-1]), labels[..., 1:].contiguous().view(-1))
        return outputs

    inner.forward = with_old_loss


def _adopt_weights(built: Built, recorder: Recorder) -> None:
    recorder.enter("build")
    inside = re.compile(rf"({'|'.join(map(re.escape, built.layers))})\.") if built.layers else None

    def layer_of(name: str) -> Layer | None:
        found = inside.match(name) if inside else None
        return built.layers[found[1]] if found else None

    vectors = _vectors(built.model, layer_of)
    for name, tensor in [*built.model.named_parameters(), *built.model.named_buffers()]:
        recorder.module = name.rpartition(".")[0]
        label = "adapters" if id(tensor) in built.adapters else "weights"
        recorder.adopt(tensor, label, vectors[id(tensor)] if id(tensor) in vectors else layer_of(name))


def _vectors(model: nn.Module, layer_of: Callable[[str], Layer | None]) -> dict[int, Layer | None]:
    """The layer of each of TinyLoRA's vectors, by its id; None for one that several layers share (`weight_tying`). Every module
    holds the table of all of them, so that by their names they would all be the first layer's."""
    users: dict[int, set[Layer | None]] = {}
    for name, module in model.named_modules():
        for adapter, key in getattr(module, "_tinylora_v_key", {}).items():
            users.setdefault(id(module.tinylora_v[adapter][key]), set()).add(layer_of(name))
    return {vector: layers.pop() if len(layers) == 1 else None for vector, layers in users.items()}


@contextmanager
def _module_hooks(built: Built, recorder: Recorder) -> Iterator[None]:
    """Tells the recorder which module is running, and in the backward pass which layer has been reached.

    A layer ends where the next one begins or another module runs, so that what its caller drops is counted to it.
    """
    names = {id(module): name for name, module in built.model.named_modules()}
    layers = built.layers
    stack: list[str] = []

    def before(module, args):
        name = names.get(id(module))
        if name is None:
            return
        if recorder.phase == "forward":
            if name in layers:
                recorder.enter("forward", layers[name])
            elif not any(outer in layers for outer in stack):
                recorder.enter("forward")
            if name in built.heads and args and isinstance(args[0], torch.Tensor) and args[0].requires_grad:
                args[0].register_hook(lambda _gradient: recorder.enter("backward"))
        stack.append(name)
        recorder.module = name

    def after(module, _args, result):
        name = names.get(id(module))
        if name is None:
            return
        stack.pop()
        recorder.module = stack[-1] if stack else ""
        if name in layers and recorder.phase == "forward":
            hidden = result[0] if isinstance(result, tuple) else result
            if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
                hidden.register_hook(lambda _gradient: recorder.enter("backward", layers[name]))

    handles = [
        nn.modules.module.register_module_forward_pre_hook(before),
        nn.modules.module.register_module_forward_hook(after, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batch(checkpoint: Checkpoint, settings: MemorySettings) -> dict[str, torch.Tensor]:
    shape = (settings.batch, settings.sequence)
    task = settings.task_type(checkpoint)
    batch = {"input_ids": torch.empty(shape, dtype=torch.long, device="meta")}
    if settings.padded:
        batch["attention_mask"] = torch.empty(shape, dtype=torch.long, device="meta")
    labels = (settings.batch,) if task == "SEQ_CLS" else shape
    regression = task == "SEQ_CLS" and settings.labels == 1
    batch["labels"] = torch.empty(labels, dtype=torch.float32 if regression else torch.long, device="meta")
    return batch
