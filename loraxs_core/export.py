"""Out of LoRA-XS: a plain LoRA with the same ΔW, exactly: ``lora_A = A``, ``lora_B = scaling * B R``.

Readers of a LoRA disagree about its scale (see `loraxs_core.servers`), so all of it goes into the numbers: with one rank r for all
modules and alpha = r, every reader's factor is 1. With a rank of its own for each module, alpha / rank is undone in the numbers,
for the readers that divide by the rank of each module. What was written is opened again, by PEFT too, before it counts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loraxs_core.adapter_names import PREFIX
from loraxs_core.architecture import weight_of_module
from loraxs_core.base_name import base_name
from loraxs_core.card import AdapterFacts, write_card
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError
from loraxs_core.loading import ADAPTER_FILE, AdapterFolder
from loraxs_core.paths import atomic_folder
from loraxs_core.proving import prove_lora
from loraxs_core.servers import remarks

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

    from loraxs_core.tuner.folder import Adapter


def export_lora(
    folder: str | Path,
    base: Checkpoint,
    out: str | Path,
    *,
    uniform_rank: bool = True,
    frozen: dict[str, Frozen] | None = None,
) -> Path:
    """Writes the LoRA-XS adapter in `folder` as a plain PEFT LoRA with the same ΔW, and proves it: the file is opened again and holds
    these numbers, and PEFT puts each of them on its module of the base, with its scale.

    uniform_rank: zero-pads every module to the largest rank, so that PEFT, vLLM, LoRAX and llama.cpp all apply it rightly. Off keeps
    each module's own rank, a smaller file that is right in PEFT and llama.cpp; `loraxs_core.servers.remarks` says so of a folder.
    frozen: A and B by module, filled in where they are not there yet: give the same to adapters whose proofs agree about the base, and only
    the first has them rebuilt and verified.
    A and B are in the base's precision, as the tuner computes with them. Works on one matrix at a time; loads no model.
    Raises AdapterError for another kind of adapter, or where PEFT would lose a part; BasisMismatch when `base` is not the one it was
    trained on.
    """
    from safetensors.torch import save_file

    from loraxs_core.tuner.folder import read_adapter

    raw = AdapterFolder(folder)
    if raw.method != "LORAXS":
        raise AdapterError(f"{raw.path} is a {raw.method} adapter; only LoRA-XS adapters can be exported to LoRA.")
    adapter = read_adapter(folder)
    frozen = {} if frozen is None else frozen
    for name in adapter.cores.keys() - frozen.keys():
        frozen[name] = _frozen(adapter, base, name)
    modules = {name: frozen[name].times(core * adapter.config.scaling_of(name)) for name, core in adapter.cores.items()}
    config = _config(adapter, base, modules, uniform_rank)
    tensors: dict[str, torch.Tensor] = {}
    for name, pair in modules.items():
        tensors |= pair.tensors(name, config)
    tensors |= {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in adapter.head.items()}
    with atomic_folder(out) as temporary:
        save_file(tensors, temporary / ADAPTER_FILE, metadata={"format": "pt"})
        prove_lora(temporary, config, tensors, raw, base)
        facts = AdapterFacts(
            method="LoRA",
            base=base_name(config.base_model_name_or_path, config.revision),
            task=config.task_type,
            ranks={name: config.rank_pattern.get(name, config.r) for name in modules},
            numbers=sum(tensor.numel() for name, tensor in tensors.items() if ".lora_" in name),
            file_bytes=(temporary / ADAPTER_FILE).stat().st_size,
            whole=tuple(sorted(config.modules_to_save or ())),
            remarks=remarks(temporary),
        )
        facts = dataclasses.replace(facts, base=dataclasses.replace(facts.base, folder=base.folder))
        write_card(temporary, facts)
    return Path(out)


@dataclass(frozen=True)
class _Factors:
    """ΔW of one module as PEFT's two factors: right (r x in), left (out x r), left @ right = ΔW, scaling and all; of an embedding the
    table's ΔW (rows x width) is left @ right too. kind: of the weight."""

    kind: str
    left: torch.Tensor
    right: torch.Tensor

    def tensors(self, name: str, config: LoraConfig) -> dict[str, torch.Tensor]:
        """The tensors of a PEFT LoRA file, padded with zeros to the module's rank in `config`, and times rank / alpha, because their
        readers multiply by alpha / rank."""
        from torch.nn.functional import pad

        rank = config.rank_pattern.get(name, config.r)
        padding = rank - len(self.right)
        right, left = pad(self.right, (0, 0, 0, padding)), pad(self.left * (rank / config.lora_alpha), (0, padding))
        if self.kind == "embedding":
            # PEFT adds (lora_embedding_B @ lora_embedding_A)ᵀ to the table.
            pair = {"lora_embedding_A": left.T, "lora_embedding_B": right.T}
        else:
            pair = {"lora_A.weight": right, "lora_B.weight": left}
        return {f"{PREFIX}{name}.{which}": factor.contiguous() for which, factor in pair.items()}


@dataclass(frozen=True)
class Frozen:
    """A (r x in) and B (out x r) of one module, in float32 after the rounding to the base's precision. kind: of the weight."""

    kind: str
    A: torch.Tensor
    B: torch.Tensor

    def times(self, core: torch.Tensor) -> _Factors:
        """The factors of ΔW = B `core` A. core: R with its scaling."""
        return _Factors(self.kind, self.B @ core, self.A)


def _frozen(adapter: Adapter, base: Checkpoint, name: str) -> Frozen:
    import torch

    loaded, weight = weight_of_module(base, name, adapter.config.task_type)
    pair = adapter.restored_bases(name, loaded.read(weight), model=base.name).pair(adapter.config.sigma)
    stored = getattr(torch, weight.dtype)
    A, B = (torch.from_numpy(np.ascontiguousarray(one)).to(stored).to(torch.float32) for one in pair)
    return Frozen(weight.kind, A, B)


def _config(adapter: Adapter, base: Checkpoint, modules: dict[str, _Factors], uniform_rank: bool) -> LoraConfig:
    from peft import LoraConfig

    from loraxs_core.tuner.config import common_rank

    r, other = (max(adapter.ranks.values()), {}) if uniform_rank else common_rank(adapter.ranks)
    given = base_name(base.folder)
    if given.id is None:
        given = base_name(adapter.config.base_model_name_or_path, adapter.config.revision)
    return LoraConfig(
        r=r,
        lora_alpha=r,
        rank_pattern=other,
        target_modules=sorted(modules),
        modules_to_save=adapter.config.modules_to_save,
        task_type=adapter.config.task_type,
        base_model_name_or_path=given.id,
        revision=given.revision,
        inference_mode=True,
        fan_in_fan_out="conv1d" in {one.kind for one in modules.values()},
    )
