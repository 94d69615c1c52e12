"""The files of a merged checkpoint: the base's tensors with some replaced, written shard by shard, read back and compared.

What the adapter does not touch are the base's bytes. Which tensors on disk a parameter in memory becomes is transformers' affair
(it renames, stacks and splits on loading); that is found by sending labels in place of numbers through its own way back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.account import balance, some
from loraxs_core.checkpoint import INDEX, Checkpoint
from loraxs_core.errors import AdapterError, SettingsError, one_line
from loraxs_core.placement import renaming
from loraxs_core.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Planned:
    """One tensor to write. numbers: gives it. origin: the base's tensor whose place it takes, empty for a new one. parameters: in
    memory, of which it holds a part. copied: whether it is the base's, byte for byte."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    numbers: Callable[[], torch.Tensor]
    origin: str
    parameters: frozenset[str]
    copied: bool


@dataclass(frozen=True)
class Plan:
    """tensors: what the files are to hold, by name. touched: parameter -> whether it has to differ from the base's (or may), for
    those that the adapter changed. left_out: tensors of the base that the result has no place for. absent: parameters that no file
    holds."""

    tensors: Mapping[str, Planned]
    touched: Mapping[str, bool]
    left_out: tuple[str, ...]
    absent: tuple[str, ...]

    def moved(self, changed: Collection[str]) -> set[str]:
        """The parameters that lie in one of the tensors `changed`."""
        return {parameter for name in changed for parameter in self.tensors[name].parameters}


def plan(
    model: PreTrainedModel,
    base: Checkpoint,
    touched: Mapping[str, bool],
    *,
    unread: Collection[str],
    absent: Collection[str],
    same_class: bool,
) -> Plan:
    """What the files of `model`, a merged one, have to hold, under the names that the base's files use.

    touched: parameter -> whether it has to differ from the base's, for those that an adapter changed. unread, absent: of the
    loaded base (`loraxs_core.loading.Loaded`). same_class: whether the result is still what the base's config says; then all that
    the base holds besides is copied too. Raises AdapterError for a parameter that is in no file.
    """
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    tied, ignored = set(model.all_tied_weights_keys or {}), set(model._keys_to_ignore_on_save or ())
    state = {key: tensor for key, tensor in model.state_dict().items() if key not in tied and key not in ignored}
    parameters = list(state)
    labels = {
        name: torch.full((), number, dtype=torch.int32).expand(state[name].shape) for number, name in enumerate(parameters)
    }
    held = {
        name: frozenset(parameters[number] for number in _labels(tensor))
        for name, tensor in revert_weight_conversion(model, labels).items()
    }
    origins = _origins(model, base, held)
    known = {name for name, _ in model.named_parameters()}
    tensors, made_up = {}, []
    for name, tensor in revert_weight_conversion(model, state).items():
        origin, mine = origins.get(name, ""), bool(held[name] & touched.keys())
        if not origin and not mine:
            if held[name] & known and not held[name] <= set(absent):
                made_up.append(name)
            continue  # the pooler of a bare encoder saved without one, or a buffer that the class computes
        copied = bool(origin) and not mine
        numbers = partial(stored_tensor, base, origin) if origin else None
        dtype = numbers().dtype if origin else tensor.dtype
        tensors[origin if origin and same_class else name] = Planned(
            tuple(tensor.shape), dtype, numbers if copied else partial(_as, tensor, dtype), origin, held[name], copied
        )
    if made_up:
        raise AdapterError(
            f"{some(made_up)} of the merged model came from no file; this is a fault of the workbench, report it."
        )
    over = [name for name in base.files if name not in set(origins.values())]
    if same_class:
        for name in over:
            number = stored_tensor(base, name)
            tensors[name] = Planned(
                tuple(number.shape), number.dtype, partial(stored_tensor, base, name), name, frozenset(), True
            )
        over = []
    return Plan(tensors, touched, tuple(name for name in over if name in set(unread)), tuple(absent))


def write(tensors: Mapping[str, Planned], folder: Path, *, shard_size: str) -> None:
    """Writes `tensors` into `folder` as transformers does: model.safetensors, or shards and their index. One shard is in memory at a
    time. Raises SettingsError for a shard size that is none."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    empty = {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in tensors.items()}
    try:
        split = split_torch_state_dict_into_shards(empty, max_shard_size=shard_size)
    except ValueError as error:
        raise SettingsError(f"{shard_size!r} is no size of a shard ({one_line(error)}); give one such as 5GB.") from error
    for file, names in split.filename_to_tensors.items():
        save_file({name: _own(tensors[name].numbers()) for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def prove(folder: Path, plan: Plan, base: Checkpoint, model: PreTrainedModel) -> tuple[str, ...]:
    """Opens what `write` wrote and compares it; returns the names of the tensors that differ from the base's, or are new.

    Proved is: the files hold exactly the planned tensors; each equals, bit by bit, what was computed or what the base holds; those
    that differ from the base's belong to the adapter's modules, every one that has to; and transformers finds every parameter of
    the model's class in the files. Raises AdapterError otherwise.
    """
    files = {name: file for file in map(SafetensorsFile, sorted(folder.glob("*.safetensors"))) for name in file.entries}
    account = balance(
        "the merged files", {name: file.entries[name].shape for name, file in files.items()}, "the merged model",
        {name: one.shape for name, one in plan.tensors.items()},
    )  # fmt: skip
    account.refuse("the disk or a library failed, nothing was kept; try again.")
    changed, damaged = [], []
    for name, planned in plan.tensors.items():
        written = _read(files[name].path, name)
        if not _same(written, planned.numbers()):
            damaged.append(name)
        elif not planned.origin or not (planned.copied or _same(written, stored_tensor(base, planned.origin))):
            changed.append(name)
    moved = plan.moved(changed)
    still = sorted(name for name, must in plan.touched.items() if must and name not in moved)
    strangers = sorted(name for name in changed if not plan.tensors[name].parameters & plan.touched.keys())
    lost = _not_found(folder, model) - set(plan.absent)
    for names, what in (
        (damaged, "are not what was computed"),
        (strangers, "changed without belonging to the adapter"),
        (still, "of the adapter did not change"),
        (sorted(lost), "are not found by transformers"),
    ):
        if names:
            raise AdapterError(
                f"The merged checkpoint was wrong when it was read back and was removed: {some(names)} {what}; try again, and report it if "
                "it comes back."
            )
    return tuple(changed)


def stored_tensor(base: Checkpoint, name: str) -> torch.Tensor:
    """The tensor called `name` in the files of `base`, as it is stored."""
    return _read(base.files[name].path, name)


def _read(path: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def _as(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.detach().to(dtype)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """With a storage of its own, as safetensors wants it: the parts of a split tensor share one."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other))
    return torch.equal(first, second)


def _labels(tensor: torch.Tensor) -> set[int]:
    """The different numbers in a tensor of labels, at no cost where it is one label seen many times."""
    if all(step == 0 for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1):
        return {int(tensor.flatten()[0])} if tensor.numel() else set()
    return set(map(int, tensor.unique()))


def _origins(model: PreTrainedModel, base: Checkpoint, held: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Name of a tensor that transformers would write -> the base's own tensor that it stands for.

    They differ by the prefix of the base model, which comes and goes with the head, and where the file uses names of an older
    version.
    """
    prefix = f"{model.base_model_prefix}."
    found = {}
    for name in held:
        for spelt in (name, f"{prefix}{name}", name.removeprefix(prefix)):
            if spelt in base.files:
                found[name] = spelt
                break
    if len(found) < len(held):
        ask, taken = renaming(model), set(found.values())
        older = {ask(name)[0]: name for name in sorted(base.files) if name not in taken}
        for name, parameters in held.items():
            if name not in found and len(parameters) == 1 and (spelt := older.get(next(iter(parameters)))):
                found[name] = spelt
    return found


def _not_found(folder: Path, model: PreTrainedModel) -> set[str]:
    """The parameters of the model's class that transformers does not find in the files of `folder`, or not in their shape."""
    _, loading = type(model).from_pretrained(
        folder, config=model.config, device_map="meta", use_safetensors=True, local_files_only=True, trust_remote_code=False,
        output_loading_info=True, ignore_mismatched_sizes=True,
    )  # fmt: skip
    return {*loading["missing_keys"], *(one if isinstance(one, str) else one[0] for one in loading["mismatched_keys"])}
