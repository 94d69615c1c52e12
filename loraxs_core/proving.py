"""A LoRA that was just written, proved: opened again it holds what was computed, and PEFT puts all of it where it belongs.

PEFT rewrites targets of mixture-of-experts models that transformers 5 stores otherwise: names that end in ``gate_proj``, ``up_proj`` or
``down_proj`` are taken for the routed experts, and the dense layers of that name are dropped in silence (peft#3711). Such modules are
named by their parameter instead (``target_parameters``), which PEFT leaves alone. What it then still loses is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.adapter_names import PREFIX
from loraxs_core.architecture import meta_model
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError, CheckpointError, SettingsError, one_line
from loraxs_core.loading import ADAPTER_FILE, AdapterFolder, class_of, labels_of

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from torch import nn

_FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")


def prove_lora(
    folder: Path, config: LoraConfig, tensors: Mapping[str, torch.Tensor], source: AdapterFolder, base: Checkpoint
) -> None:
    """Writes adapter_config.json of `config` into `folder`, where the tensors are already, and checks the two by reading them back.

    config: its targets are changed where PEFT would lose modules. tensors: what the file must hold, by key. source: the adapter that
    this one was made from, which tells the model's class. Raises AdapterError when the file or what PEFT makes of it is not that.
    """
    _reopen(folder, tensors)
    config.save_pretrained(str(folder))
    lost = _lost(folder, tensors, source, base)
    if not lost:
        return
    by_parameter = {name for name in config.target_modules if _prefixed(name, lost)}
    config.target_modules = sorted(set(config.target_modules) - by_parameter)
    config.target_parameters = sorted(f"{name}.weight" for name in by_parameter)
    ranks = {f"{name}.weight": config.rank_pattern[name] for name in by_parameter & config.rank_pattern.keys()}
    config.rank_pattern = config.rank_pattern | ranks  # PEFT looks a parameter up by its own name
    config.save_pretrained(str(folder))
    if lost := _lost(folder, tensors, source, base):
        raise AdapterError(
            f"PEFT would not read this LoRA as it was written: {lost[0]} finds no place on {base.name} or another scale than its own "
            f"({len(lost)} in all). Merge the adapter instead (loraxs merge)."
        )


def _reopen(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    import torch
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_FILE, framework="pt") as file:
        keys = set(file.keys())
        wrong = sorted(keys ^ tensors.keys()) or [
            key for key, tensor in tensors.items() if not torch.equal(file.get_tensor(key), tensor)
        ]
    if wrong:
        raise AdapterError(
            f"{folder / ADAPTER_FILE} does not hold what was written ({wrong[0]}, {len(wrong)} tensors in all); try another disk."
        )


def _lost(folder: Path, tensors: Mapping[str, torch.Tensor], source: AdapterFolder, base: Checkpoint) -> list[str]:
    """The tensors that PEFT does not put on their module, or scales otherwise than it should; and those it wants beyond them."""
    from peft import PeftModel, get_peft_model_state_dict

    wanted = {key.removeprefix(PREFIX): tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(meta_base(source, base), folder)
            placed = get_peft_model_state_dict(model, save_embedding_layers=False)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(
            f"PEFT cannot load this LoRA on {base.name}: {one_line(error)}. Merge the adapter instead (loraxs merge)."
        ) from error
    found = {key.removeprefix(PREFIX): tuple(tensor.shape) for key, tensor in placed.items()}
    odd = {key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)}
    return sorted(odd | _wrong_scales(model, wanted))


def _wrong_scales(model: PeftModel, wanted: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Keys of modules whose factor is not alpha / rank of their tensors, which is what their numbers were written for."""
    config = model.peft_config["default"]
    modules = dict(model.base_model.model.named_modules())
    wrong = set()
    for key, shape in wanted.items():
        for ending in (".lora_A.weight", ".lora_embedding_A"):
            scales = getattr(modules.get(key.removesuffix(ending)), "scaling", {}) if key.endswith(ending) else None
            if scales is not None and scales.get("default") != config.lora_alpha / shape[0]:
                wrong.add(key)
    return wrong


def _prefixed(name: str, keys: list[str]) -> bool:
    return any(f"{name}{ending}" in keys for ending in _FACTORS)


def meta_base(source: AdapterFolder, base: Checkpoint) -> nn.Module:
    """The model that the adapter `source` was trained on, on the meta device; bare modules of the base's names and shapes where
    transformers does not know the architecture, or has no class with all of the adapter's modules."""
    wanted = {name.module for name in source.names.names.values()}
    try:
        task = class_of(source, base)
        labels = labels_of(source, base, task)
        model = meta_model(base, task, **({} if labels is None else {"num_labels": labels}))
    except (CheckpointError, SettingsError):
        return _skeleton(source, base)
    return model if wanted <= {name for name, _ in model.named_modules()} else _skeleton(source, base)


def _skeleton(source: AdapterFolder, base: Checkpoint) -> nn.Module:
    """The modules that `source` adapts, and those saved whole, with the shapes of `base` and nothing else."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    root = nn.Module()
    with torch.device("meta"):
        for name in sorted(one.module for one in source.names.names.values() if one.part == "loraxs_R"):
            weight = base.weight(name)
            out, into = weight.shape
            made = {"embedding": nn.Embedding, "conv1d": Conv1D}.get(weight.kind, nn.Linear)
            _place(root, name, made(out, into) if made is not nn.Linear else nn.Linear(into, out, bias=False))
        for name, key in source.heads.items():
            parent, _, parameter = name.rpartition(".")
            tensor = torch.empty(source.file.entries[key].shape)
            _place(root, parent).register_parameter(parameter, nn.Parameter(tensor, requires_grad=False))
    return root


def _place(root: nn.Module, name: str, module: nn.Module | None = None) -> nn.Module:
    """The module at `name` below `root`, made on the way; `module` put there if given."""
    from torch import nn

    at = root
    *parents, last = name.split(".")
    for part in parents:
        if not hasattr(at, part):
            at.add_module(part, nn.Module())
        at = getattr(at, part)
    if module is not None or not hasattr(at, last):
        at.add_module(last, module or nn.Module())
    return getattr(at, last)
