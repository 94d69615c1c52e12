"""Records two steps of a fine-tune on the meta device: forward, backward, clipping and optimizer.

Two steps, because the optimizer's states are born in the first one and weigh on the second.
"""

from __future__ import annotations

import gc
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from analyzers.memory.built_model import Built, build
from analyzers.memory.cuda_emulation import CudaEmulation
from analyzers.memory.evaluation import Predictions, forward_passes
from analyzers.memory.losses import fuse_loss, over_all_logits, use_old_loss
from analyzers.memory.offloading import offload
from analyzers.memory.optimizers import optimizer_of
from analyzers.memory.preference import without_checkpointing
from analyzers.memory.recorder import Recorder
from analyzers.memory.trace import Layer, Trace

if TYPE_CHECKING:
    from analyzers.memory.settings import MemorySettings
    from analyzers.methods import AdapterSpec
    from loraxs_core.checkpoint import Checkpoint

# cuBLAS takes its workspace from PyTorch's allocator: 8,519,680 bytes by default (CUDABlas.cpp, getChosenWorkspaceSize),
# 32 MiB on Hopper and later.
CUBLAS_WORKSPACE = 8_519_680
STEPS = 2
MICRO_BATCHES = 2  # of one step that are recorded: from the second on gradients are there, and all others are like it

_one_at_a_time = threading.Lock()


def record_steps(checkpoint: Checkpoint, settings: MemorySettings, adapter: AdapterSpec | Mapping | None) -> Trace:
    """The recording of two optimizer steps of `checkpoint` under `settings`, adapter as given.

    Raises whatever transformers, PEFT or PyTorch raise for what they cannot build or run on the meta device.
    """
    with _one_at_a_time, _no_collection(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        emulation = CudaEmulation(
            padding=settings.padded or settings.padding_free,
            autocast=torch.bfloat16 if settings.mixed_precision else None,
            softmax_keeps_input=settings.software.softmax_keeps_input,
            expanded_keys=settings.software.expanded_keys,
        )
        built = build(checkpoint, settings, adapter, checkpoint_contexts=emulation.checkpoint_contexts)
        return _record(built, checkpoint, settings, emulation)


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


def _record(built: Built, checkpoint: Checkpoint, settings: MemorySettings, emulation: CudaEmulation) -> Trace:
    model = built.model
    recorder = Recorder()
    recorder.trace.roots = built.roots
    _adopt_weights(built, recorder)
    recorder.hold(CUBLAS_WORKSPACE, "temporaries")
    optimizer = optimizer_of(settings, model)
    for parameter, state in optimizer.state.items():  # of optimizers that do not wait for the first step
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.is_meta:
                recorder.adopt(value, "optimizer", recorder.owner(parameter))
    for group in optimizer.param_groups:
        group["params"] = recorder.announcing(group["params"])
    emulation.on_cast = lambda copy: recorder.label(copy, "casts")
    if settings.task_type(checkpoint) != "SEQ_CLS":
        if settings.loss != "transformers":
            for one in filter(None, (model, built.reference)):
                fuse_loss(one, settings.loss, emulation.autocast, lambda: recorder.enter("backward"))
        elif settings.software.old_loss:
            use_old_loss(model, settings.software)
    loop = _Loop(built, checkpoint, settings, emulation, recorder, optimizer)
    with emulation.taking_autocast(), _module_hooks(built, recorder), emulation, recorder:
        for _ in range(STEPS):
            loop.step()
        if settings.eval_batch:
            loop.evaluate()
        recorder.enter("end")
    return recorder.trace


class _Loop:
    """The training loop: what it does in a step, in which order, and what it holds on to."""

    def __init__(self, built: Built, checkpoint: Checkpoint, settings: MemorySettings, emulation: CudaEmulation, recorder: Recorder,
                 optimizer):  # fmt: skip
        self.built, self.checkpoint, self.settings = built, checkpoint, settings
        self.emulation, self.recorder, self.optimizer = emulation, recorder, optimizer
        self.trained = [parameter for parameter in built.model.parameters() if parameter.requires_grad]

    def step(self) -> None:
        """An optimizer step with its micro-batches."""
        recorder, optimizer = self.recorder, self.optimizer
        for _ in range(min(self.settings.gradient_accumulation, MICRO_BATCHES)):
            self._micro_batch()
        recorder.enter("clip")
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        recorder.enter("optimizer")
        if not self.settings.offload_optimizer:
            optimizer.step()
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    recorder.label(value, "optimizer")
        for parameter in self.trained:
            recorder.label_new(parameter, "weights")
        recorder.enter("zero-grad")
        optimizer.zero_grad(set_to_none=not self.settings.software.keeps_gradients)

    def _micro_batch(self) -> None:
        settings, recorder = self.settings, self.recorder
        recorder.enter("inputs")
        batch = _batch(self.checkpoint, settings, settings.rows)
        offloading = saved_tensors_hooks(*offload(self.built.model)) if settings.offload_activations else nullcontext()
        recorder.enter("forward")
        with offloading:
            outputs = self._forward(self.built.model, batch)
        loss = outputs.loss
        if not settings.keep_logits:
            del outputs
        if settings.preference:
            self._refer(batch)
        recorder.enter("loss-backward")
        # Through its edge: given the tensor, PyTorch would leave the emulation while checkpointed layers are recomputed.
        torch.autograd.backward(torch.autograd.graph.get_gradient_edge(loss), torch.ones_like(loss))
        if hasattr(self.optimizer, "finish_backward"):
            self.optimizer.finish_backward()
        recorder.enter("between")
        outputs = loss = batch = None
        for parameter in self.trained:
            if parameter.grad is not None:
                recorder.label(parameter.grad, "gradients")

    def _forward(self, model: nn.Module, batch: dict[str, torch.Tensor]):
        """The outputs as accelerate's wrapper of a model returns them: under mixed precision in fp32, after autocast has been left."""
        from accelerate.utils import convert_to_fp32  # takes a second

        outputs = model(**batch)
        self.emulation.leave_autocast()
        return convert_to_fp32(outputs) if self.settings.mixed_precision else outputs

    def _refer(self, batch: dict[str, torch.Tensor]) -> None:
        """The reference's log-probabilities of a preference batch, while the model's activations wait."""
        if self.settings.preference == "dpo-precomputed":
            return
        self.recorder.enter("between")
        self.recorder.enter("forward")
        reference, model = self.built.reference, self.built.model
        with torch.no_grad(), without_checkpointing(model):
            if reference is not None:
                self._forward(reference, batch)
            else:
                with model.disable_adapter():
                    self._forward(model, batch)

    def evaluate(self) -> None:
        """Steps of the evaluation that comes between training steps, and the logits that wait for its end on the GPU."""
        settings, recorder, model = self.settings.but(padding_free=False), self.recorder, self.built.model
        model.eval()
        waiting = Predictions()
        for further in forward_passes(settings.eval_predictions, settings.eval_batch):
            recorder.enter("inputs")
            batch = _batch(self.checkpoint, settings, settings.but(batch=settings.eval_batch).rows)
            recorder.enter("forward")
            with torch.no_grad(), over_all_logits(model) if settings.eval_predictions else nullcontext():
                outputs = self._forward(model, batch)
                if settings.preference:
                    self._refer(batch)
            recorder.enter("evaluation")
            if settings.eval_predictions:
                waiting.add(outputs)
                for batches in further:
                    waiting.add_like_the_last(batches)
            del outputs


def _adopt_weights(built: Built, recorder: Recorder) -> None:
    recorder.enter("build")
    inside = re.compile(rf"({'|'.join(map(re.escape, built.layers))})\.") if built.layers else None

    def layer_of(name: str) -> Layer | None:
        found = inside.match(name) if inside else None
        return built.layers[found[1]] if found else None

    vectors = _vectors(built.model, layer_of)
    for name, tensor in (*built.all_parts("named_parameters"), *built.all_parts("named_buffers")):
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
    names = {id(module): name for name, module in built.all_parts("named_modules")}
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


def _batch(checkpoint: Checkpoint, settings: MemorySettings, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    task = settings.task_type(checkpoint)
    batch = {"input_ids": torch.empty(shape, dtype=torch.long, device="meta")}
    if settings.padded:
        batch["attention_mask"] = torch.empty(shape, dtype=torch.long, device="meta")
    if settings.padding_free:
        batch["position_ids"] = torch.empty(shape, dtype=torch.long, device="meta")
    labels = shape[:1] if task == "SEQ_CLS" else shape
    regression = task == "SEQ_CLS" and settings.labels == 1
    batch["labels"] = torch.empty(labels, dtype=torch.float32 if regression else torch.long, device="meta")
    return batch
