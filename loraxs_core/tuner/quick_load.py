"""PEFT's ``load_adapter`` for one more LoRA-XS adapter of a kind that the model has already: the time it takes does not grow.

PEFT's own way lists all parameters of all resident adapters several times over. Where an adapter of the same targets is there, all that
one more needs is known: its layers, its bases, its keys in a file. The numbers are verified exactly as on the long way, which is taken
for everything else (the first adapter of a kind, heads, the hub, training, offloading) and for every file that is not as expected, so
that it says what is wrong.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.modules.module import _IncompatibleKeys

from loraxs_core.adapter_names import PREFIX
from loraxs_core.tuner.config import LoraXSConfig
from loraxs_core.tuner.given import paired
from loraxs_core.tuner.model import LoraXSModel
from loraxs_core.tuner.placed import where_to_look
from loraxs_core.tuner.portable import AdapterSet
from loraxs_core.tuner.saving import CONFIG, WEIGHTS
from loraxs_core.tuner.verifying import mode, verifying


def install() -> None:
    """Puts the quick way before PEFT's ``PeftModel.load_adapter``; once, however often this package is imported."""
    long_way = getattr(PeftModel.load_adapter, "loraxs_long_way", PeftModel.load_adapter)
    PeftModel.load_adapter = with_quick_way(long_way)  # type: ignore[method-assign]


def with_quick_way(long_way: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(long_way)
    ordinary = {name: one.default for name, one in signature.parameters.items()}

    @functools.wraps(long_way)
    def load_adapter(
        self: PeftModel, model_id: Any, adapter_name: str, *args: Any, verify: str | None = None, **kwargs: Any
    ) -> Any:
        if verify is not None:
            with verifying(verify):
                return load_adapter(self, model_id, adapter_name, *args, **kwargs)
        given = signature.bind(self, model_id, adapter_name, *args, **kwargs).arguments
        autocast = given.get("autocast_adapter_dtype", True)
        asked = given.keys() - {"self", "model_id", "adapter_name", "autocast_adapter_dtype"}
        plain = isinstance(self.base_model, LoraXSModel) and all(given[name] == ordinary[name] for name in asked)
        if plain and _load_quickly(self, Path(model_id), adapter_name, autocast):
            return _IncompatibleKeys([], [])  # as PEFT: what load_state_dict says of keys
        return long_way(self, model_id, adapter_name, *args, **kwargs)

    load_adapter.loraxs_long_way = long_way  # type: ignore[attr-defined]
    return load_adapter


def _load_quickly(model: PeftModel, folder: Path, adapter_name: str, autocast: bool) -> bool:
    """Whether the adapter in `folder` was loaded. Raises as the long way does for one whose numbers are not what was saved, and leaves
    the model as it was then."""
    tuner = model.base_model
    if adapter_name in model.peft_config or not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        return False
    if getattr(model, "hf_device_map", None) is not None:
        return False
    config = LoraXSConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraXSConfig) or not tuner.knows_places_of(where_to_look(config)):
        return False
    tensors = _tensors(folder / WEIGHTS)
    config.inference_mode = True
    model.add_adapter(adapter_name, config, autocast_adapter_dtype=autocast)
    shared = tuner.adapter_sets[adapter_name]
    taken = False
    try:
        taken = _fill(shared, tensors)
    finally:
        if not taken:
            model.delete_adapter(adapter_name)
    if taken and model.training:
        model.eval()
    return taken


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError):
        return {}  # the long way says what is wrong with it


def _fill(shared: AdapterSet, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the tensors of a file are just those of the adapter, under its own names; they are verified and put into place then."""
    keys = {f"{PREFIX}{name}.loraxs_R": name for name in shared.layers}
    proof = tensors.pop(shared.proof_key, None)
    sides = {
        part: {name: tensors.pop(key) for name in shared.layers if (key := f"{PREFIX}{name}.loraxs_{part}") in tensors}
        for part in "AB"
    }
    if (proof is None and mode() != "off") or keys.keys() != tensors.keys():
        return False
    cores = {keys[key]: tensor for key, tensor in tensors.items()}
    shared.take(proof, cores, paired(sides["A"], sides["B"]))
    return True
