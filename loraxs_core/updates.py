"""What is to become a LoRA-XS adapter: the weight differences of a LoRA or of a fine-tune, each with its place in the base, what is
carried along whole, and what a LoRA-XS adapter cannot hold.

Of a LoRA everything has to have its place, or it is refused by name. A fine-tune is free to move anything: what stays behind is
measured and named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loraxs_core.account import some
from loraxs_core.adapter_folder import AdapterFolder
from loraxs_core.adapter_names import ModulePaths
from loraxs_core.architecture import OWN, meta_model, module_names
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.deltas import changes_base, difference, open_adapter
from loraxs_core.errors import AdapterError, CheckpointError, SettingsError
from loraxs_core.inventory import Weight, pattern_key
from loraxs_core.loading import HEADS, check_places, class_of
from loraxs_core.targets import select_targets

if TYPE_CHECKING:
    import torch

# Part of an adapter's tensor -> what it is, where a LoRA-XS adapter has no place for it.
_NOT_HELD = {
    "lora_embedding_A": "LoRA on an embedding",
    "lora_embedding_B": "LoRA on an embedding",
    "lora_B.bias": "biases of LoRA's own (lora_bias)",
    "lora_magnitude_vector": "DoRA's magnitudes",
    "token_adapter.trainable_tokens_delta": "trained tokens (trainable_token_indices)",
    "trainable_tokens_delta": "trained tokens (trainable_token_indices)",
    "bias": "trained biases",
    "base_layer.bias": "trained biases",
    "weight": "weights saved whole without modules_to_save",
    "base_layer.weight": "weights saved whole without modules_to_save",
}
# Ending of a class's name -> PEFT's task type.
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
_ROWS = 1 << 22  # numbers of a matrix compared at a time


@dataclass(frozen=True)
class Change:
    """One changed module. module: its path in the adapter's file. delta: its weight in the update. weight: in the base."""

    module: str
    delta: Weight
    weight: Weight


@dataclass(frozen=True)
class LeftOut:
    """A tensor that a fine-tune changed and the adapter does not hold. kind: ``head``, ``embedding``, ``norm``, ``bias``, ``matrix``,
    ``expert``, or ``new`` (not in the base, or in another shape). norm: ‖Δ‖_F. moved: ‖Δ‖ / ‖base‖; None where the base is zero."""

    name: str
    kind: str
    norm: float
    moved: float | None


@dataclass(frozen=True)
class Update:
    """label: what it is. checkpoint: the weight differences. changes: those to convert. settings: what the adapter's configuration
    says besides ranks and targets. whole: tensors carried along as they are, by the name they have in an adapter's file.
    left_out: what the adapter will not hold."""

    label: str
    checkpoint: Checkpoint
    changes: tuple[Change, ...]
    settings: Mapping[str, object]
    whole: Mapping[str, torch.Tensor] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()


def of_adapter(source: str | Path, base: Checkpoint) -> Update:
    """The update that a PEFT LoRA in the folder `source` stands for.

    Raises AdapterError for an adapter that does not fit `base`, or one of whose tensors a LoRA-XS adapter could not hold.
    """
    adapter = AdapterFolder(source)
    _refuse_settings(adapter)
    update = open_adapter(adapter.path)
    try:
        task = class_of(adapter, base)
    except (CheckpointError, SettingsError):  # transformers does not know the architecture: names are as the files have them
        known, modules = False, {weight.name: weight for weight in base.weights}
    else:
        known, modules = True, {path: base.weight(name) for name, path in module_names(base, task).items()}
    paths = ModulePaths(modules)
    changes, used = [], set()
    for delta in update.linear:
        module = paths.find(delta.name) or delta.name
        weight = modules.get(module)
        if weight is None or weight.shape != delta.shape or weight.kind not in ("linear", "conv1d"):
            raise AdapterError(
                f"{adapter.path} adapts {delta.name} ({delta.shape[0]}x{delta.shape[1]}), which {base.name} does not have in that "
                "shape; give the base it was trained on."
            )
        changes.append(Change(module if known else delta.name, delta, weight))
        used |= {f"{delta.name}.lora_A.weight", f"{delta.name}.lora_B.weight"}
    heads = adapter.heads
    _refuse_rest(adapter, adapter.names.keys.keys() - used - heads.keys())
    whole = adapter.head()
    if known:
        places = {key: place for place, key in check_places(adapter, base).items()}
        whole = {places[heads[name]]: tensor for name, tensor in whole.items()}
    settings = {
        "modules_to_save": adapter.config.get("modules_to_save"),
        "task_type": adapter.task_type,
        "auto_mapping": adapter.config.get("auto_mapping"),
        "base_model_name_or_path": adapter.config.get("base_model_name_or_path"),
    }
    return Update(f"LoRA adapter {adapter.path.name}", update, tuple(changes), settings, whole)


def _refuse_settings(adapter: AdapterFolder) -> None:
    """Adapters whose file does not hold everything they changed."""
    bias, start = adapter.config.get("bias", "none"), adapter.config.get("init_lora_weights")
    if bias != "none":
        raise AdapterError(
            f"{adapter.path} trained biases (bias={bias!r}), which a LoRA-XS adapter cannot hold; merge it instead."
        )
    if changes_base(start):
        raise AdapterError(
            f"{adapter.path} was initialised by {start}, which changes the base weights too; save it as a plain LoRA first "
            "(PEFT's path_initial_model_for_weight_conversion)."
        )
    if repeated := adapter.config.get("layer_replication"):
        raise AdapterError(
            f"{adapter.path} repeats layers of its base (layer_replication={repeated}), which a LoRA-XS adapter cannot; use it through "
            "PEFT."
        )


def _refuse_rest(adapter: AdapterFolder, rest: set[str]) -> None:
    kinds: dict[str, list[str]] = {}
    for name in sorted(rest):
        part = adapter.names.names[name].part
        kinds.setdefault(_NOT_HELD.get(part, "parts of another method"), []).append(name)
    if kinds:
        what = " and ".join(f"{kind} ({some(names)})" for kind, names in kinds.items())
        raise AdapterError(f"{adapter.path} holds {what}, which a LoRA-XS adapter cannot hold; merge it instead.")


def of_finetune(source: Checkpoint, base: Checkpoint, targets: str) -> Update:
    """The update `source` - `base` of the layers `targets`, with an account of everything else that differs.

    The class is that of `source`: its task and, if it is a classifier or the like, its head go along. Raises AdapterError where
    the base cannot be loaded as that class.
    """
    update = difference(source, base)
    task, settings = _class_of(source, base)
    paths = module_names(base, task)
    wanted = {weight.name for weight in select_targets(base, targets)}
    changes = tuple(
        Change(paths[weight.name], one, weight)
        for one in update.linear
        if (weight := base.weight(one.name)).name in wanted and weight.name in paths
    )
    whole, saved = _head(source, base) if settings["task_type"] in HEADS else ({}, [])
    left_out = _left_out(source, base, update, {change.delta.name for change in changes}, whole)
    settings = settings | {"modules_to_save": saved or None}
    return Update(f"{source.name} minus {base.name}", update, changes, settings, whole, left_out)


def _class_of(source: Checkpoint, base: Checkpoint) -> tuple[str | None, dict[str, object]]:
    """(the class of `source`, as `loraxs_core.architecture.meta_model` takes it of `base`; what an adapter's configuration says so by)."""
    names = [str(one) for one in source.config.get("architectures") or ()]
    kind = next((task for end, task in _TASKS.items() if names and names[0].endswith(end)), None)
    if kind is None and names and names[0].endswith("ForConditionalGeneration") and source.config.get("is_encoder_decoder"):
        kind = "SEQ_2_SEQ_LM"
    settings: dict[str, object] = {"task_type": kind, "auto_mapping": None}
    if not names:
        return None, settings
    for task in (OWN, kind, None):
        try:
            found = type(meta_model(base, task))
        except (CheckpointError, SettingsError):
            continue
        if found.__name__ == names[0]:
            if kind is None:
                settings["auto_mapping"] = {"base_model_class": found.__name__, "parent_library": found.__module__}
            return task, settings
    raise AdapterError(
        f"{source.name} is a {names[0]} and {base.name} cannot be loaded as one; give the checkpoint that it was fine-tuned from."
    )


def _head(source: Checkpoint, base: Checkpoint) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(the tensors of the task's head, and of a pooler that the base does not have, by name; the modules to save whole).

    The head goes along even where the base has one: PEFT looks for it in an adapter for such a task.
    """
    from safetensors import safe_open

    model = meta_model(source, OWN)
    known = {pattern_key(name): file.entries[name].shape for name, file in base.files.items()}
    prefix = f"{model.base_model_prefix}."
    whole, modules = {}, []
    for name, tensor in model.state_dict().items():
        spelt = next((one for one in (name, name.removeprefix(prefix)) if one in source.files), None)
        if spelt is None or (name.startswith(prefix) and known.get(pattern_key(name)) == tuple(tensor.shape)):
            continue
        module = name.rpartition(".")[0] if name.startswith(prefix) else name.partition(".")[0]
        modules.append(module)
        with safe_open(source.files[spelt].path, framework="pt") as file:
            whole[name] = file.get_tensor(spelt)
    return whole, list(dict.fromkeys(modules))


def _left_out(
    source: Checkpoint, base: Checkpoint, update: Checkpoint, converted: set[str], whole: Mapping[str, torch.Tensor]
) -> tuple[LeftOut, ...]:
    """Everything that differs between the two and is neither converted nor carried along, the farthest moved first."""
    carried = {pattern_key(name) for name in whole}
    weights = {weight.tensor or weight.name: weight for weight in source.weights if not weight.tied_to}
    there = {pattern_key(name): name for name in base.files}
    found = []
    for weight in update.weights:
        if weight.name in converted or pattern_key(f"{weight.name}.weight") in carried:
            continue
        norm, size = _distance(update, weight, base)
        if norm:
            kind = "head" if weight.role == "head" else weight.kind if weight.kind in ("expert", "embedding") else "matrix"
            found.append(LeftOut(weight.name, kind, norm, norm / size if size else None))
    compared = {weight.name for weight in update.weights}
    for name, file in source.files.items():
        key, matrix = pattern_key(name), weights.get(name)
        if key in carried or (matrix is not None and matrix.name in compared) or not file.is_float(name):
            continue
        other = there.get(key)
        if other is None or base.files[other].entries[other].shape != file.entries[name].shape:
            found.append(LeftOut(name, "new", float(np.linalg.norm(file.read(name).astype(np.float64))), None))
        elif matrix is None and base.files[other].is_float(other):
            before, after = (one.read(which).astype(np.float64) for one, which in ((base.files[other], other), (file, name)))
            if norm := float(np.linalg.norm(after - before)):
                size = float(np.linalg.norm(before))
                kind = "bias" if name.endswith("bias") else "norm" if before.ndim == 1 else "matrix"
                found.append(LeftOut(name, kind, norm, norm / size if size else None))
    return tuple(sorted(found, key=lambda one: -one.norm))


def _distance(update: Checkpoint, weight: Weight, base: Checkpoint) -> tuple[float, float]:
    """(‖Δ‖_F, ‖base‖_F) of one matrix, some rows at a time."""
    step = max(1, _ROWS // weight.shape[1])
    other, norm, size = base.weight(weight.name), 0.0, 0.0
    for start in range(0, weight.shape[0], step):
        norm += float(np.square(update.read_rows(weight, start, start + step), dtype=np.float64).sum())
        size += float(np.square(base.read_rows(other, start, start + step), dtype=np.float64).sum())
    return math.sqrt(norm), math.sqrt(size)
