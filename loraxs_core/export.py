"""Out of LoRA-XS: a plain LoRA with the same ΔW, exactly: ``lora_A = A``, ``lora_B = scaling * B R``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loraxs_core.adapter_names import PREFIX
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError
from loraxs_core.loading import AdapterFolder
from loraxs_core.paths import atomic_folder

if TYPE_CHECKING:
    import torch


def export_lora(folder: str | Path, base: Checkpoint, out: str | Path, *, uniform_rank: bool = False) -> Path:
    """Writes the LoRA-XS adapter in `folder` as a plain PEFT LoRA with the same ΔW: lora_A = A, lora_B = scaling * B R, alpha = r.

    uniform_rank: zero-pads every module to the largest rank, for servers that ignore rank_pattern (vLLM, LoRAX). A and B are in
    the base's precision, as the tuner computes with them. Works on one matrix at a time; loads no model.
    Raises AdapterError for another kind of adapter, BasisMismatch when `base` is not the one it was trained on.
    """
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    from loraxs_core.tuner.config import common_rank
    from loraxs_core.tuner.folder import read_adapter

    raw = AdapterFolder(folder)
    if raw.method != "LORAXS":
        raise AdapterError(f"{raw.path} is a {raw.method} adapter; only LoRA-XS adapters can be exported to LoRA.")
    adapter = read_adapter(folder)
    largest = max(adapter.ranks.values())
    tensors: dict[str, torch.Tensor] = {}
    kinds = set()
    for name, core in adapter.cores.items():
        weight = base.weight(name)
        if weight.kind == "embedding":
            raise AdapterError(
                f"{name} is an embedding; a LoRA for servers holds linear layers only. Merge the adapter instead."
            )
        kinds.add(weight.kind)
        A, B = adapter.restored_bases(name, base.read(weight)).pair(adapter.config.sigma)
        stored = getattr(torch, weight.dtype)
        right, B = (torch.from_numpy(np.ascontiguousarray(one)).to(stored).to(torch.float32) for one in (A, B))
        left = B @ (core * adapter.config.scaling_of(name))
        padding = largest - len(core) if uniform_rank else 0
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.nn.functional.pad(right, (0, 0, 0, padding)).contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.nn.functional.pad(left, (0, padding)).contiguous()
    tensors |= {f"{PREFIX}{name}": tensor for name, tensor in adapter.head.items()}
    r, other = (largest, {}) if uniform_rank else common_rank(adapter.ranks)
    config = LoraConfig(
        r=r,
        lora_alpha=r,
        rank_pattern=other,
        alpha_pattern=other,
        target_modules=sorted(adapter.ranks),
        modules_to_save=adapter.config.modules_to_save,
        task_type=adapter.config.task_type,
        base_model_name_or_path=adapter.config.base_model_name_or_path,
        inference_mode=True,
        fan_in_fan_out="conv1d" in kinds,
    )
    with atomic_folder(out) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(temporary))
    return Path(out)
