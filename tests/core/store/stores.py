"""Adapters to fill a store with, as several test files need them."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from loraxs_core.tuner import LoraXSConfig, LoraXSLayer


def saved(base: Path, folder: Path, seed: int, **options) -> Path:
    """The folder of an adapter on `base` with random R."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraXSConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]} | options))
    shake(model, seed)
    model.save_pretrained(folder)
    return folder


def shake(model, seed: int) -> None:
    """Gives every R of the active adapter other random numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LoraXSLayer):
                for core in layer.loraxs_R.values():
                    core.copy_(torch.randn(core.shape, generator=generator))


def fleet(base: Path, folder: Path, count: int, **options) -> list[Path]:
    """Folders of `count` adapters of one base and plan."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraXSConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]} | options))
    for index in range(count):
        shake(model, index)
        model.save_pretrained(folder / f"user-{index}")
    return [folder / f"user-{index}" for index in range(count)]


def synthetic(count: int, modules: int, r: int):
    """(plan, what it shares, rows) of `count` adapters without a base: bfloat16 R of `modules` modules."""
    import numpy as np

    from loraxs_core.bases import Identity
    from loraxs_core.number_checksums import core_checksum, head_checksum
    from loraxs_core.proof import Proof, Record, encode, sketch_rows
    from loraxs_core.store.plans import planned

    random = np.random.default_rng(0)
    names = [f"model.layers.{index // 7}.proj{index % 7}" for index in range(modules)]
    cores = {name: torch.zeros(r, r, dtype=torch.bfloat16) for name in names}
    records = {
        name: Record(Identity(index, index, index), core_checksum(cores[name]), np.zeros((sketch_rows(r), r), np.float32))
        for index, name in enumerate(names)
    }
    tensors = {f"base_model.model.{name}.loraxs_R": core for name, core in cores.items()}
    tensors[f"base_model.model.{min(names)}.loraxs_proof"] = torch.from_numpy(
        encode(Proof(1, head_checksum({}), False, records))
    )
    plan, shared = planned({"peft_type": "LORAXS", "r": r, "save_dtype": "bfloat16", "target_modules": names}, tensors)
    return plan, shared, (random.bytes(plan.row_bytes) for _ in range(count))
