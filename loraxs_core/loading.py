"""From a checkpoint and an adapter folder to loaded models, through transformers and PEFT.

Only safetensors are read and remote code is never run. The class is what the files say it is: that which the adapter was trained
on, its task's, or the checkpoint's own, whichever has the modules that the adapter's tensors name. Nothing is loaded unless every
tensor of the adapter found its place and every parameter came from a file (`loraxs_core.account`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.account import Account, balance, counted, some
from loraxs_core.adapter_names import PREFIX, FileNames, ModulePaths, method_of
from loraxs_core.errors import AdapterError, CheckpointError, SettingsError, WeightsMissing, WorkbenchError, one_line
from loraxs_core.paths import user_path
from loraxs_core.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from loraxs_core.checkpoint import Checkpoint

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # tasks whose head comes in place of the one that a model was pretrained with
# What transformers' and PEFT's loaders raise for files and settings that do not suit them.
_LOADER_ERRORS = (
    ValueError, RuntimeError, KeyError, TypeError, OSError, AttributeError, ImportError, NotImplementedError, AssertionError, IndexError,
)  # fmt: skip
_VOCABULARY_HEAD = re.compile(r"(?:LMHeadModel|ForCausalLM|ForConditionalGeneration)$")


class AdapterFolder:
    """An adapter as PEFT saves it: its configuration and the names and shapes of its tensors.

    path: the folder. config: adapter_config.json. file: its safetensors. Raises AdapterError in one sentence for a folder that is
    missing, has no adapter in it, holds only pickled weights or a damaged file.
    """

    def __init__(self, path: str | Path):
        self.path = user_path(path)
        if not self.path.is_dir():
            raise AdapterError(f"There is no adapter folder {self.path}; give the folder that has {ADAPTER_CONFIG} in it.")
        self.config = self._read_config()
        if not (self.path / ADAPTER_FILE).is_file():
            pickled = (self.path / "adapter_model.bin").is_file()
            raise AdapterError(
                f"{self.path} holds only pickled weights (adapter_model.bin), which can run code when opened and are refused; "
                "save the adapter again with safetensors."
                if pickled
                else f"{self.path} has no {ADAPTER_FILE}; copy the whole adapter folder."
            )
        try:
            self.file = SafetensorsFile(self.path / ADAPTER_FILE)
        except CheckpointError as error:
            raise AdapterError(str(error)) from error
        self.names = FileNames.of(self.file.entries)

    @property
    def method(self) -> str:
        """PEFT's name of the method, ``LORA`` or ``LORAXS``."""
        return method_of(self.config)

    @property
    def task_type(self) -> str | None:
        return self.config.get("task_type")

    @property
    def heads(self) -> dict[str, str]:
        """Name -> tensor key of everything saved whole (``modules_to_save``), such as ``classifier.weight``.

        PEFT saves every module whose path ends in one of the names, so ``classifier`` names DistilBERT's ``pre_classifier`` too.
        """
        wanted = self.config.get("modules_to_save") or ()
        return {name: key for name, key in self.names.keys.items() if any(f"{one}." in name for one in wanted)}

    def head(self) -> dict[str, torch.Tensor]:
        """The tensors of `heads`, by name."""
        from safetensors import safe_open

        with safe_open(self.file.path, framework="pt") as file:
            return {name: file.get_tensor(key) for name, key in self.heads.items()}

    def _read_config(self) -> dict:
        path = self.path / ADAPTER_CONFIG
        if not path.is_file():
            raise AdapterError(f"{self.path} has no {ADAPTER_CONFIG}, so it is no adapter; give the folder that PEFT saved.")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AdapterError(f"{path} is not valid JSON; copy the adapter folder again.") from error
        if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
            raise AdapterError(f"{path} does not say which method the adapter is (peft_type); copy the adapter folder again.")
        return config


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
    from peft import PeftModel
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.peft_model import (
        PeftModelForQuestionAnswering,
        PeftModelForSequenceClassification,
        PeftModelForTokenClassification,
    )

    import loraxs_core.tuner  # noqa: F401  registers LoRA-XS with PEFT

    if adapter.method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise AdapterError(f"{adapter.path} is for the method {adapter.method!r}, which this version of PEFT does not know.")
    task = class_of(adapter, checkpoint)
    model, missing, unread = _load_base(checkpoint, task, labels_of(adapter, checkpoint, task))
    absent = _absent(model, missing, adapter, checkpoint, task)
    # PEFT's classes for these tasks save the head without being told; the others add nothing that a file could hold.
    wrappers = {
        "SEQ_CLS": PeftModelForSequenceClassification,
        "TOKEN_CLS": PeftModelForTokenClassification,
        "QUESTION_ANS": PeftModelForQuestionAnswering,
    }
    try:
        config = PEFT_TYPE_TO_CONFIG_MAPPING[adapter.method].from_pretrained(adapter.path)
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise AdapterError(
                f"{adapter.path} is a {adapter.method} adapter, which adds tokens to the input and changes no weight; use it through PEFT."
            )
        config.inference_mode = True
        wrapped = wrappers.get(adapter.task_type, PeftModel)(model, config)
        placed = _place(adapter, wrapped, checkpoint)
        if hasattr(wrapped.base_model, "_cast_adapter_dtype"):
            wrapped.base_model._cast_adapter_dtype(adapter_name="default", autocast_adapter_dtype=True)
    except WorkbenchError:
        raise
    except _LOADER_ERRORS as error:
        raise AdapterError(f"PEFT cannot load {adapter.path} on {checkpoint.name}: {one_line(error)}.") from error
    return Loaded(wrapped.eval(), task, absent, unread, placed)


def class_of(adapter: AdapterFolder, checkpoint: Checkpoint) -> str | None:
    """Which class of `checkpoint` the adapter was trained on, as `loraxs_core.architecture.meta_model` takes it.

    The adapter's ``auto_mapping`` names it outright; its ``task_type`` names an auto class; the checkpoint's ``architectures`` name
    its own. Of these, in the order of how likely each is, the first that has every module that the adapter's tensors name, else
    the one that has most of them. Raises SettingsError for a task type that PEFT does not have, and when none can be built.
    """
    from loraxs_core.architecture import AUTO_CLASSES, meta_model

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
    from loraxs_core.architecture import AUTO_CLASSES, OWN, meta_model

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
    from loraxs_core.architecture import meta_model

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
    except _LOADER_ERRORS as error:
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
    from loraxs_core.architecture import OWN, meta_model

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


def _place(adapter: AdapterFolder, model: PeftModel, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Puts every tensor of the adapter into `model`; returns the names of the base's own parameters among the places.

    Raises AdapterError, with the count and two names, unless each found its place and each place its tensor.
    """
    import torch
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    state = model.state_dict(keep_vars=True)
    saved = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    places = {key.removeprefix(PREFIX): tensor for key, tensor in saved.items()}
    own = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    paths = ModulePaths(name for name, _ in model.base_model.model.named_modules())
    found: dict[str, str] = {}
    strangers: list[str] = list(adapter.names.twice)
    for name, key in adapter.names.keys.items():
        known = adapter.names.names[name]
        spellings = (name, f"{paths.find(known.module)}.{known.part}")
        place = next((one for one in spellings if one in places), next((one for one in spellings if one in own), None))
        if place is None or place in found:
            strangers.append(key)
        else:
            found[place] = key
    numbers = load_file(adapter.file.path)
    _refuse_infinite(adapter, numbers)
    _refuse_misfits(adapter, checkpoint, numbers, found, places | own)
    advice = "give the base and the settings it was trained with, or save it again with PEFT's save_pretrained."
    unfilled = tuple(name for name in places if name not in found)
    # Files of mixtures of experts hold LoRAs expert by expert, which PEFT stacks on loading: their names are settled by it.
    stacks = bool(strangers) and adapter.method == "LORA" and _converts(model)
    on = f"the {type(model.get_base_model()).__name__} of {checkpoint.name} with its adapter_config.json"
    if not stacks:
        Account(str(adapter.path), on, len(numbers), unplaced=tuple(strangers), unfilled=unfilled).refuse(advice)
    tensors = {f"{PREFIX}{place}": numbers[key] for place, key in found.items()}
    tensors |= {key: numbers[key] for key in strangers}
    try:
        outcome = set_peft_model_state_dict(model, tensors, "default")
    except KeyError:  # of a module saved whole that the file does not hold
        Account(str(adapter.path), on, len(numbers), unplaced=tuple(strangers), unfilled=unfilled).refuse(advice)
        raise
    gone = set(outcome.missing_keys)
    filled = {id(tensor) for key, tensor in state.items() if key not in gone}
    empty = tuple(name for name in places if name not in found and id(places[name]) not in filled) if stacks else ()
    lost = tuple(strangers) if outcome.unexpected_keys and strangers else tuple(outcome.unexpected_keys)
    Account(str(adapter.path), on, len(numbers), unplaced=lost, unfilled=empty).refuse(advice)
    for module, key in adapter.names.alphas.items():
        layer = model.base_model.model.get_submodule(paths.find(module))
        layer.scaling["default"] = float(numbers[key].to(torch.float64)) / layer.r["default"]
    return tuple(place for place in found if place not in places)


def _refuse_infinite(adapter: AdapterFolder, numbers: Mapping[str, torch.Tensor]) -> None:
    bad = [key for key, tensor in numbers.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise AdapterError(
            f"{counted(len(bad), 'tensor')} of {adapter.path} {'holds' if len(bad) == 1 else 'hold'} NaN or infinite numbers: "
            f"{some([key.removeprefix(PREFIX) for key in bad])}; its training diverged or the file is damaged, take an earlier "
            "checkpoint of it."
        )


def _refuse_misfits(
    adapter: AdapterFolder,
    checkpoint: Checkpoint,
    numbers: Mapping[str, torch.Tensor],
    found: Mapping[str, str],
    places: Mapping[str, torch.Tensor],
) -> None:
    held = {
        place: tuple(numbers[key].shape) for place, key in found.items() if ".loraxs_" not in place
    }  # which its tuner checks
    account = balance(str(adapter.path), held, checkpoint.name, {name: tuple(places[name].shape) for name in held})
    for name, (here, there) in account.misfits.items():
        module, _, factor = name.removesuffix(".weight").rpartition(".")
        axis = {"lora_A": 0, "lora_embedding_A": 0, "lora_B": 1, "lora_embedding_B": 1}.get(factor)
        if axis is not None and len(here) == len(there) == 2 and here[1 - axis] == there[1 - axis]:
            raise AdapterError(
                f"{module} has rank {here[axis]} in {adapter.file.path.name} and {there[axis]} in {ADAPTER_CONFIG} (r, rank_pattern) of "
                f"{adapter.path}; restore the config that was saved with it."
            )
        if len(here) == len(there) and here[1:] == there[1:] and _is_vocabulary(there[0], checkpoint):
            resized = [one.removesuffix(".weight") for one, (rows, _) in account.misfits.items() if rows[0] == here[0]]
            raise AdapterError(
                f"{some(sorted(resized))} {'has' if len(resized) == 1 else 'have'} {here[0]:,} rows in {adapter.path} and {there[0]:,} in {checkpoint.name}: the "
                f"vocabulary was resized for training; resize the base first (model.resize_token_embeddings({here[0]}), "
                "save_pretrained) and give that folder."
            )
    account.refuse("give the base it was trained on.")


def _is_vocabulary(rows: int, checkpoint: Checkpoint) -> bool:
    return any(weight.kind == "embedding" and weight.shape[0] == rows for weight in checkpoint.weights) or rows in (
        weight.shape[0] for weight in checkpoint.weights if weight.role == "head"
    )


def _converts(model: PeftModel) -> bool:
    """Whether transformers keeps this architecture's weights under other names, or stacked, so that PEFT converts old files."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    return get_checkpoint_conversion_mapping(getattr(model.get_base_model().config, "model_type", "")) is not None


def labels_of(adapter: AdapterFolder, checkpoint: Checkpoint, task: str | None) -> int | None:
    """How many labels the head in the adapter has; None where none is saved. Read off the tensor that grows with that number in
    transformers' own class, as architectures call it by different names."""
    from loraxs_core.architecture import meta_model

    if adapter.task_type not in ("SEQ_CLS", "TOKEN_CLS"):
        return None
    few, many = (
        {name: tuple(one.shape) for name, one in meta_model(checkpoint, task, num_labels=n).named_parameters()} for n in (3, 5)
    )
    for name, key in adapter.names.keys.items():
        if few.get(name, ())[:1] == (3,) and many[name][:1] == (5,):
            return adapter.file.entries[key].shape[0]
    return None
