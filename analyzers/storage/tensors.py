"""The tensors that `save_pretrained` writes for an adapter: names, shapes and dtypes, without any weights.

Every method of the registry follows a rule short enough to state, and answers at once. With options that its rule does not
know, PEFT is asked: it builds the adapter on the meta device, and its own `get_peft_model_state_dict` says what would be
saved. That takes seconds on a large model.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from analyzers.methods import METHODS, AdapterSpec, peft_config
from analyzers.methods.saved import PREFIX, Module, Saved, Tensor
from analyzers.precision import kept_in_fp32
from loraxs_core.architecture import OWN, meta_model, model_tensors
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError, one_line

if TYPE_CHECKING:
    from torch import nn

# What PEFT adds to modules_to_save by itself for these task types (PeftModelForSequenceClassification and its kin).
HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def rank_of(spec: AdapterSpec, name: str) -> int:
    """The rank PEFT gives to the module called `name`: the first ``rank_pattern`` key that matches its end at a dot, else `rank`."""
    for pattern, rank in spec.ranks.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return rank
    return spec.rank


def adapter_tensors(checkpoint: Checkpoint, spec: AdapterSpec, modules: list[Module], dtype: str, task: str | None) -> Saved:
    """The adapter's own tensors (no heads). dtype: of the saved adapter. task: decides the model class that PEFT wraps.

    Raises SettingsError for a method that PEFT cannot build on the meta device.
    """
    chosen = METHODS[spec.method]
    known = chosen.written_for_embeddings or not any(module.kind == "embedding" for module in modules)
    if chosen.written and known and set(spec.options) <= chosen.written_options:
        return chosen.written(chosen.complete(spec), modules, dtype)
    return _traced(_Question(repr((checkpoint.fingerprint, spec, dtype, task)), checkpoint, spec, dtype, task))


def head_tensors(
    checkpoint: Checkpoint, task: str | None, modules_to_save: tuple[str, ...], dtype: str, prefix: str = PREFIX
) -> dict[str, Tensor]:
    """Tensors of the modules that are trained and saved whole, under the keys PEFT gives them: the user's and the task's head.

    modules_to_save: as PEFT matches them, by the end of the module's path. Raises SettingsError when one matches nothing.
    """
    heads = HEADS.get(task or "", ())
    if not modules_to_save and not heads:
        return {}
    paths, state = _inside(_Class(checkpoint.fingerprint, task or OWN, checkpoint))
    fp32 = fp32_paths(checkpoint, task, dtype)
    found: dict[str, Tensor] = {}
    for target in (*modules_to_save, *heads):
        matches = [path for path in paths if path.endswith(target)]
        if not matches and target not in heads:
            raise SettingsError(f"No module of {checkpoint.name} ends in {target!r}, so it cannot be saved with the adapter.")
        for path in matches:
            for key, shape in state.items():
                if key.startswith(f"{path}."):
                    found[f"{prefix}{key}"] = Tensor(shape, "float32" if fp32(key) else dtype)
    return found


def base_copies(checkpoint: Checkpoint, targets: Sequence[str], paths: Collection[str], dtype: str, task: str | None) -> dict:
    """Key -> `Tensor` of the base's own embedding and head that PEFT writes into the adapter when they are among the targets.

    Its ``save_embedding_layers="auto"`` does so where ``target_modules`` (`targets`) names one as PEFT's list of embedding layers
    does; ``save_pretrained(..., save_embedding_layers=False)`` leaves them out. paths: of the adapted modules.
    """
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    if not set(targets) & set(EMBEDDING_LAYER_NAMES):
        return {}
    own = _Class(checkpoint.fingerprint, task or OWN, checkpoint)
    fp32 = fp32_paths(checkpoint, task, dtype)
    return {
        f"{PREFIX}{path}.base_layer.{key.removeprefix(path + '.')}": Tensor(shape, "float32" if fp32(key) else dtype)
        for path in _vocabulary_layers(own)
        if path in paths
        for key, shape in _inside(own)[1].items()
        if key.startswith(f"{path}.")
    }


@dataclass(frozen=True)
class _Class:
    """A checkpoint loaded with one class of model; equal when both are."""

    fingerprint: str
    task: str
    checkpoint: Checkpoint = field(compare=False)


def fp32_paths(checkpoint: Checkpoint, task: str | None, dtype: str) -> Callable[[str], bool]:
    """Whether transformers keeps the module or weight of that path in float32 when the model is loaded in `dtype`."""
    if dtype not in ("float16", "bfloat16") or not checkpoint.model_type:
        return lambda path: False
    return _fp32_paths(_Class(checkpoint.fingerprint, task or OWN, checkpoint), dtype)


@lru_cache(maxsize=32)
def _fp32_paths(model: _Class, dtype: str) -> Callable[[str], bool]:
    import torch

    return kept_in_fp32(meta_model(model.checkpoint, model.task), getattr(torch, dtype))


@lru_cache(maxsize=16)
def _vocabulary_layers(model: _Class) -> tuple[str, ...]:
    """The paths of the input embedding and of the head, as far as the class says which they are."""
    made = meta_model(model.checkpoint, model.task)
    found = []
    for get in (made.get_input_embeddings, made.get_output_embeddings):
        try:
            layer = get()
        except (NotImplementedError, AttributeError):
            continue
        found.extend(path for path, module in made.named_modules() if module is layer)
    return tuple(found)


@lru_cache(maxsize=16)
def _inside(model: _Class) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """The paths of a model's modules, and the shapes in its ``state_dict``."""
    made = meta_model(model.checkpoint, model.task)
    paths = tuple(path for path, _ in made.named_modules() if path)
    return paths, {key: tuple(tensor.shape) for key, tensor in made.state_dict().items()}


def whole_model(checkpoint: Checkpoint, dtype: str, task: str | None) -> Saved:
    """Every tensor of the model in one file, tied ones once, as transformers' save_pretrained writes a fine-tuned copy.

    Floating-point tensors in `dtype`, others as they are."""
    fp32 = fp32_paths(checkpoint, task, dtype)
    tensors = {
        key: Tensor(shape, ("float32" if fp32(key) else dtype) if "float" in own else own)
        for key, (shape, own) in _written(_Class(checkpoint.fingerprint, task or OWN, checkpoint)).items()
    }
    return Saved(tensors, tuple(tensors.values()))


@lru_cache(maxsize=16)
def _written(model: _Class) -> dict[str, tuple[tuple[int, ...], str]]:
    """Key -> shape and dtype of what save_pretrained of the model itself writes."""
    return {
        key: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for key, tensor in model_tensors(model.checkpoint, model.task).items()
    }


@dataclass(frozen=True)
class _Question:
    """What is asked of PEFT; equal when `text` is, so that an answer is found again."""

    text: str
    checkpoint: Checkpoint = field(compare=False)
    spec: AdapterSpec = field(compare=False)
    dtype: str = field(compare=False)
    task: str | None = field(compare=False)


@lru_cache(maxsize=64)
def _traced(question: _Question) -> Saved:
    """The adapter built by PEFT on the meta device, and what PEFT would save of it."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict

    spec = dataclasses.replace(question.spec, task_type=None, modules_to_save=None)  # heads are counted by `head_tensors`
    model = meta_model(question.checkpoint, question.task or OWN)
    own = _float_numbers(model)
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, peft_config(spec))
            state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"PEFT cannot lay out {spec.method} on {question.checkpoint.name} without its weights, so its size is not known: "
            f"{one_line(error)}."
        ) from error
    tensors = {
        key: Tensor(
            tuple(tensor.shape), question.dtype if tensor.dtype.is_floating_point else str(tensor.dtype).removeprefix("torch.")
        )
        for key, tensor in state.items()
    }
    trained = tuple(
        Tensor(tuple(parameter.shape), question.dtype) for parameter in adapted.parameters() if parameter.requires_grad
    )
    return Saved(tensors, trained, shared=_float_numbers(adapted) - own - sum(tensor.numbers for tensor in trained))


def _float_numbers(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
