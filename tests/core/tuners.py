"""Adapters on small models, as several test files load, read and compare them."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loraxs_core.tuner import LoraXSLayer

IDS = torch.randint(0, 64, (4, 9), generator=torch.Generator().manual_seed(0))


def llama(tiny_llama, **options):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, **options).eval()


def layers_of(model) -> dict[str, LoraXSLayer]:
    return {layer.module_name: layer for layer in model.modules() if isinstance(layer, LoraXSLayer)}


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def deltas(model) -> dict[str, torch.Tensor]:
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers_of(model).items()}


def loaders():
    """PEFT's way in, and transformers' own, which tells the tuner nothing."""

    def native(base, folder):
        base.load_adapter(folder)
        return base

    def native_trainable(base, folder):
        base.load_adapter(folder, is_trainable=True)
        base(IDS)
        return base

    return {"peft": PeftModel.from_pretrained, "transformers": native, "transformers, trainable": native_trainable}


LOADERS = loaders()
