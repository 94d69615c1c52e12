"""From a checkpoint and an adapter folder to loaded models, through transformers and PEFT.

Only safetensors are read and remote code is never run. The class is what the files say it is: that which the adapter was trained
on, its task's, or the checkpoint's own, whichever has the modules that the adapter's tensors name. Nothing is loaded unless every
tensor of the adapter found its place and every parameter came from a file (`loraxs_core.account`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraxs_core.account import Account
from loraxs_core.adapter_folder import ADAPTER_CONFIG, ADAPTER_FILE, AdapterFolder
from loraxs_core.adapter_names import ModulePaths
from loraxs_core.adapter_places import LOADER_ERRORS, fill, match, wrap
from loraxs_core.architecture import AUTO_CLASSES, OWN, meta_model
from loraxs_core.errors import AdapterError, CheckpointError, SettingsError, WeightsMissing, WorkbenchError, one_line

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from loraxs_core.checkpoint import Checkpoint

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_FILE",
    "AdapterFolder",
    "Loaded",
    "check_places",
    "class_of",
    "labels_of",
    "load",
    "load_adapter",
]
HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # tasks whose head comes in place of the one that a model was pretrained with
_VOCABULARY_HEAD = re.compile(r"(?:LMHeadModel|ForCausalLM|ForConditionalGeneration)$")


@dataclass(frozen=True)
class Loaded:
    """An adapter on its base, in evaluation mode. task: the class it was loaded as, for `loraxs_core.architecture.meta_model`.

    absent: parameters that no file holds, which nothing of the base reads (the pooler of an encoder saved without one).
    unread: tensors of the base that this class has no place for. placed: tensors of the adapter that lie in the base's own
    parameters (trained biases, a resized embedding), by the names of those.
    """

    model: PeftModel
    task: str | None
    absent: tuple[str, ...]
    unread: tuple[str, ...]
    placed: tuple[str, ...]


def load_adapter(adapter: AdapterFolder, checkpoint: Checkpoint) -> PeftModel:
    """The adapter on its base, in evaluation mode; a LoRA-XS adapter's bases are verified on the way. Raises as `load` does."""
    return load(adapter, checkpoint).model


def load(adapter: AdapterFolder, checkpoint: Checkpoint) -> Loaded:
    """The adapter on its base, with the account of what was loaded.

    Raises BasisMismatch naming the modules when the base is not the one the adapter was trained on; AdapterError for an adapter
    that PEFT cannot load, that is placed only in part, or whose head is neither in its file nor in the base; CheckpointError for a
    base that lacks some of its parameters.
    """
    task = class_of(adapter, checkpoint)
    model, missing, unread = _load_base(checkpoint, task, labels_of(adapter, checkpoint, task))
    absent = _absent(model, missing, adapter, checkpoint, task)
    try:
        wrapped = wrap(adapter, model, base=checkpoint.name)
        matched = match(adapter, wrapped, checkpoint)
        fill(adapter, wrapped, matched)
        if hasattr(wrapped.base_model, "_cast_adapter_dtype"):
            wrapped.base_model._cast_adapter_dtype(adapter_name="default", autocast_adapter_dtype=True)
    except WorkbenchError:
        raise
    except LOADER_ERRORS as error:
        raise AdapterError(f"PEFT cannot load {adapter.path} on {checkpoint.name}: {one_line(error)}.") from error
    return Loaded(wrapped.eval(), task, absent, unread, matched.in_base)


def check_places(adapter: AdapterFolder, checkpoint: Checkpoint) -> dict[str, str]:
    """Place -> key of every tensor of the adapter, in the class that it was trained on, without loading the model.

    The same account as `load`'s, on a model without numbers. Places are called as in that class's memory, the key is the file's.
    Raises as `load` does for an adapter that does not fit.
    """
    task = class_of(adapter, checkpoint)
    labels = labels_of(adapter, checkpoint, task)
    model = meta_model(checkpoint, task, **({} if labels is None else {"num_labels": labels}))
    try:
        return match(adapter, wrap(adapter, model, base=checkpoint.name, empty=True), checkpoint).found
    except WorkbenchError:
        raise
    except LOADER_ERRORS as error:
        raise AdapterError(f"PEFT cannot load {adapter.path} on {checkpoint.name}: {one_line(error)}.") from error


def class_of(adapter: AdapterFolder, checkpoint: Checkpoint) -> str | None:
    """Which class of `checkpoint` the adapter was trained on, as `loraxs_core.architecture.meta_model` takes it.

    The adapter's ``auto_mapping`` names it outright; its ``task_type`` names an auto class; the checkpoint's ``architectures`` name
    its own. Of these, in the order of how likely each is, the first that has every module that the adapter's tensors name, else
    the one that has most of them. Raises SettingsError for a task type that PEFT does not have, and when none can be built.
    """
    if adapter.task_type not in AUTO_CLASSES:
        raise SettingsError(
            f"Unknown task type {adapter.task_type!r}; there are {', '.join(str(one) for one in AUTO_CLASSES if one)}."
        )
    wanted = {name.module for name in adapter.names.names.values()}
    best, most, refusal = None, -1, None
    for task in _candidates(adapter, checkpoint):
        try:
            model = meta_model(checkpoint, task)
        except (SettingsError, CheckpointError) as error:
            refusal = refusal or error
            continue
        paths = ModulePaths(name for name, _ in model.named_modules())
        # The proof of a LoRA-XS adapter is of its modules' names as well.
        found = sum(module in paths if adapter.method == "LORAXS" else paths.find(module) is not None for module in wanted)
        if found > most:
            best, most = task, found
        if found == len(wanted):
            break
    if most < 0:
        raise refusal or SettingsError(f"{checkpoint.name} has no class that an adapter could be loaded on.")
    return best


def _candidates(adapter: AdapterFolder, checkpoint: Checkpoint) -> Iterator[str | None]:
    task, own = adapter.task_type, [str(one) for one in checkpoint.config.get("architectures") or ()]
    mapping = adapter.config.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    if task is None and named and named not in own:
        for one in AUTO_CLASSES:
            try:
                if type(meta_model(checkpoint, one)).__name__ == named:
                    yield one
                    break
            except (SettingsError, CheckpointError):
                continue
    if task in HEADS:
        yield from (task, OWN)
    elif task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        # A class of its own with a vocabulary head is more than the auto class where images or speech come in.
        yield from (OWN, task) if own and _VOCABULARY_HEAD.search(own[0]) else (task, OWN)
    else:
        yield from (OWN, None)


def _load_base(
    checkpoint: Checkpoint, task: str | None, labels: int | None
) -> tuple[PreTrainedModel, set[str], tuple[str, ...]]:
    """(the transformers model of `checkpoint` for `task`, in the precision it is stored in, on the CPU; the parameters that the
    checkpoint does not hold, or holds for another number of labels; its tensors that the class has no place for).

    Raises WeightsMissing for an architecture without weights, SettingsError when it has no such head, CheckpointError when
    transformers cannot load it.
    """
    if checkpoint.folder is None or not checkpoint.has_weights:
        raise WeightsMissing(
            f"{checkpoint.name} is an architecture without weights; give a folder or a hub id that holds safetensors files of it."
        )
    settings: Mapping[str, object] = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    model_class = type(meta_model(checkpoint, task))
    try:
        model, loading = model_class.from_pretrained(
            checkpoint.folder, dtype=_precision(checkpoint), use_safetensors=True, trust_remote_code=False, local_files_only=True,
            output_loading_info=True, **settings,
        )  # fmt: skip
    except LOADER_ERRORS as error:
        raise CheckpointError(f"transformers cannot load {checkpoint.name}: {one_line(error)}.") from error
    mismatched = {one if isinstance(one, str) else one[0] for one in loading["mismatched_keys"]}
    return model, {*loading["missing_keys"], *mismatched}, tuple(sorted(loading["unexpected_keys"]))


def _precision(checkpoint: Checkpoint) -> torch.dtype | str:
    """The finest that a matrix of `checkpoint` is stored in, whatever its config says, so that nothing is rounded by loading."""
    import torch

    kinds = {weight.dtype for weight in checkpoint.weights}
    if not kinds <= {"float64", "float32", "float16", "bfloat16"}:
        return "auto"  # quantised
    return getattr(
        torch,
        "float32" if kinds == {"float16", "bfloat16"} else min(kinds, key=("float64", "float32", "float16", "bfloat16").index),
    )


def _absent(
    model: PreTrainedModel, missing: set[str], adapter: AdapterFolder, checkpoint: Checkpoint, task: str | None
) -> tuple[str, ...]:
    """The parameters that neither the base nor the adapter holds and nothing needs; raises for those that something does.

    Needed is everything but the pooler of a bare encoder, which saving often leaves out and no other module reads.
    """
    paths = ModulePaths(name for name, _ in model.named_modules())
    brought = {f"{paths.find(name.module)}.{name.part}" for name in adapter.names.names.values()}
    absent = sorted(missing - brought)
    if not absent:
        return ()
    bare = model.base_model is model
    if bare and all("pooler" in name.split(".") for name in absent):
        return tuple(absent)
    own = meta_model(checkpoint, OWN)
    prefix = own.base_model_prefix
    held = {name.removeprefix(f"{prefix}.") for name in own.state_dict()} if task != OWN else set(absent)
    if lost := [name for name in absent if name in held or name.removeprefix(f"{prefix}.") in held]:
        places = dict.fromkeys(model.state_dict(), ())
        Account(
            f"the files of {checkpoint.name}",
            f"the {type(model).__name__} that its config describes",
            len(places),
            unfilled=tuple(lost),
        ).refuse(
            "transformers would fill them with random numbers: copy or download the whole checkpoint again.", CheckpointError
        )
    names = sorted({one.rpartition(".")[0] for one in absent})
    raise AdapterError(
        f"{absent[0]} of the model that {adapter.path} was trained on is neither in the adapter nor in {checkpoint.name}; train "
        f"it again with modules_to_save={names}, or give as base the model it was trained on, saved with that head."
    )


def labels_of(adapter: AdapterFolder, checkpoint: Checkpoint, task: str | None) -> int | None:
    """How many labels the head in the adapter has; None where none is saved. Read off the tensor that grows with that number in
    transformers' own class, as architectures call it by different names."""
    if adapter.task_type not in ("SEQ_CLS", "TOKEN_CLS"):
        return None
    few, many = (
        {name: tuple(one.shape) for name, one in meta_model(checkpoint, task, num_labels=n).named_parameters()} for n in (3, 5)
    )
    for name, key in adapter.names.keys.items():
        if few.get(name, ())[:1] == (3,) and many[name][:1] == (5,):
            return adapter.file.entries[key].shape[0]
    return None
