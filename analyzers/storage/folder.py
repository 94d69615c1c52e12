"""The small files beside the numbers: adapter_config.json and the README.md (model card) that PEFT's save_pretrained writes."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace

from analyzers.methods import METHODS, AdapterSpec, adapter_config
from analyzers.methods.saved import Tensor
from analyzers.storage.layout import data_bytes, header_bytes
from analyzers.storage.tensors import HEADS
from loraxs_core.architecture import own_class
from loraxs_core.base_name import base_name as core_base_name
from loraxs_core.card import card_text, loraxs_facts
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.paths import user_path


def base_name(checkpoint: Checkpoint) -> str:
    """What a user gives to from_pretrained: the folder where there is one, else the hub id."""
    is_hub_id = "/" in checkpoint.name and not user_path(checkpoint.name).exists()
    return checkpoint.name if checkpoint.folder is None or is_hub_id else str(checkpoint.folder)


def config_bytes(checkpoint: Checkpoint, spec: AdapterSpec, task: str | None, *, base: str, conv1d: bool = False) -> int:
    """Length of adapter_config.json. base: what was given to from_pretrained, a folder or a hub id; it is written into the file.

    task: PEFT's task type; without one PEFT writes down the model's class instead. conv1d: whether a target is GPT-2's Conv1D.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # VeRA advises to save its projections; the size of doing without is what was asked
        config = adapter_config(dataclasses.replace(spec, task_type=task))
    # Of mixtures of experts PEFT rewrites targets for transformers 5; it asks the model for nothing but its type.
    typed = SimpleNamespace(config=SimpleNamespace(model_type=checkpoint.model_type))
    convert_peft_config_for_transformers(config, typed, None)
    config.inference_mode = True
    config.base_model_name_or_path = base
    if task in HEADS:
        config.modules_to_save = [*(config.modules_to_save or []), *HEADS[task]]
    if conv1d and hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = True  # PEFT writes it down when it meets a Conv1D
    values = {key: list(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    if task is None:
        name, module = _own_class(_Model(checkpoint.fingerprint, checkpoint))
        values["auto_mapping"] = {"base_model_class": name, "parent_library": module}
    if METHODS[spec.method].is_loraxs:
        from loraxs_core.tuner.saving import named_settings

        values |= named_settings(config)
    return len(json.dumps(values, indent=2, sort_keys=True))


@lru_cache(maxsize=64)
def card_bytes(is_lora: bool, task: str | None, base: str) -> int:
    """Length of the README.md, in UTF-8: huggingface_hub's template with the fields that PEFT fills in (create_or_update_model_card)."""
    import peft
    from huggingface_hub import ModelCard, ModelCardData

    card = ModelCard.from_template(ModelCardData())
    card.data["library_name"] = "peft"
    card.data["tags"] = sorted({"transformers", f"base_model:adapter:{base}"} | ({"lora"} if is_lora else set()))
    if task == "CAUSAL_LM":
        card.data.pipeline_tag = "text-generation"
    card.data["base_model"] = base
    card.text = "\n".join([*card.text.splitlines(), f"### Framework versions\n\n- PEFT {peft.__version__}"])
    return len(str(card).encode())


def loraxs_card_bytes(spec: AdapterSpec, task: str | None, base: str, tensors: Mapping[str, Tensor]) -> int:
    """Length of the README.md of a LoRA-XS adapter, which has a card of its own. tensors: all of its file, by key."""
    from huggingface_hub import ModelCard, ModelCardData

    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    config = adapter_config(dataclasses.replace(spec, task_type=task))
    facts = loraxs_facts(shapes, core_base_name(base), task, config.common_scaling, header_bytes(tensors) + data_bytes(tensors))
    written_by_peft = ModelCard.from_template(ModelCardData(tags=["transformers"]))
    return len(card_text(facts, written_by_peft).encode())


@dataclass(frozen=True)
class _Model:
    fingerprint: str
    checkpoint: Checkpoint = field(compare=False)


@lru_cache(maxsize=32)
def _own_class(model: _Model) -> tuple[str, str]:
    """The name and the module of the class that the checkpoint itself names."""
    found = own_class(model.checkpoint)
    return found.__name__, found.__module__
