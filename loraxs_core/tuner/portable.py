"""An adapter as a whole: the layers that carry it, the proof saved with it, and the check when it comes back.

One `AdapterSet` is shared by all layers of an adapter. PEFT hands it the tensors of a file before they are loaded
(`from_file`); transformers' own ``load_adapter`` does not, it puts tensors straight into the modules, so every layer also asks
`check` before its first use, and right after loading.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from loraxs_core.errors import AdapterError
from loraxs_core.proof import Proof, Record, encode, proof_bytes, sketch_rows
from loraxs_core.tuner.config import LoraXSConfig
from loraxs_core.tuner.layer import LoraXSLayer

PREFIX = "base_model.model."  # what PEFT puts before module names in a file


def saved_tensors(modules: Mapping[str, tuple[int, int, int]], config: LoraXSConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """What ``save_pretrained`` writes for an adapter on `modules` {name: (out, in, rank)}: {key: (shape, dtype)}.

    Modules saved whole (``modules_to_save``) come on top. PEFT adds the safetensors metadata {"format": "pt"}.
    """
    tensors = {f"{PREFIX}{name}.loraxs_R": ((rank, rank), config.save_dtype) for name, (_, _, rank) in modules.items()}
    if modules:
        ranks = {name: rank for name, (_, _, rank) in modules.items()}
        tensors[f"{PREFIX}{anchor(ranks)}.loraxs_proof"] = ((proof_bytes(ranks),), "uint8")
    return tensors


def anchor(names: Mapping[str, int]) -> str:
    """The module under whose name the proof is stored: the first in alphabetical order."""
    return min(names)


class AdapterSet:
    """The layers of one adapter. layers: module name -> layer. config: the adapter's."""

    def __init__(self, name: str, layers: dict[str, LoraXSLayer], config: LoraXSConfig):
        self.name, self.layers, self.config = name, layers, config

    @classmethod
    def bind(cls, model: nn.Module, adapter_name: str, config: LoraXSConfig) -> AdapterSet:
        """Makes the set of an adapter just injected into `model`, known to all of its layers, with room for a proof."""
        found = {
            layer.module_name: layer
            for layer in model.modules()
            if isinstance(layer, LoraXSLayer) and adapter_name in layer.loraxs_R
        }
        shared = cls(adapter_name, found, config)
        for layer in found.values():
            layer.adapter_set[adapter_name] = shared
        holder = shared.holder
        holder.loraxs_proof[adapter_name] = torch.zeros(
            proof_bytes(shared.ranks), dtype=torch.uint8, device=holder.loraxs_R[adapter_name].device
        )
        return shared

    @classmethod
    def of(cls, model: nn.Module, adapter_name: str) -> AdapterSet:
        """The set of an adapter of `model`. Raises AdapterError when no layer carries it."""
        for layer in model.modules():
            if isinstance(layer, LoraXSLayer) and adapter_name in layer.adapter_set:
                return layer.adapter_set[adapter_name]
        raise AdapterError(f"The model has no LoRA-XS adapter named {adapter_name!r}.")

    @property
    def ranks(self) -> dict[str, int]:
        return {name: layer.r[self.name] for name, layer in self.layers.items()}

    @property
    def holder(self) -> LoraXSLayer:
        """The layer that holds the proof."""
        return self.layers[anchor(self.ranks)]

    def to_save(self, entries: dict[str, torch.Tensor], state_dict: dict, config: LoraXSConfig) -> dict[str, torch.Tensor]:
        """What goes into the file: every R in `config.save_dtype`, and the proof of the bases they mean something for.

        entries: this adapter's part of the model's state dict, keys with the adapter's name in them.
        """
        dtype = getattr(torch, config.save_dtype)
        saved, cores, proof_key = {}, {}, None
        for key, value in entries.items():
            if key.endswith(f".loraxs_proof.{self.name}"):
                proof_key = key
            elif key.endswith(f".loraxs_R.{self.name}"):
                module = key.removesuffix(f".loraxs_R.{self.name}").removeprefix(PREFIX)
                saved[key] = cores[module] = value.detach().to(dtype)
            else:
                saved[key] = value
        if proof_key is not None:
            saved[proof_key] = torch.from_numpy(self._proof(cores, config).copy())
        return saved

    def _proof(self, cores: dict[str, torch.Tensor], config: LoraXSConfig) -> np.ndarray:
        records = {}
        for name, layer in self.layers.items():
            known = layer.trained_with.get(self.name)
            if known is None or cores[name].device.type == "meta":
                return np.zeros(proof_bytes(self.ranks), dtype=np.uint8)  # a model without weights has nothing to prove
            rows = sketch_rows(layer.r[self.name])
            records[name] = Record(known.identity, _checksum(name, cores[name]), known.sketch[:rows])
        quantised = any(layer.quantization_backend is not None for layer in self.layers.values())
        return encode(Proof(self.settings(config), 0, quantised, records))

    def settings(self, config: LoraXSConfig) -> int:
        """Checksum of everything in the configuration that gives R its meaning."""
        meaning = {
            "vectors": config.vectors,
            "sigma": config.sigma,
            "seed": config.seed if config.vectors == "random" else None,
            "modules": {name: [layer.r[self.name], float(layer.scaling[self.name])] for name, layer in self.layers.items()},
        }
        return zlib.crc32(json.dumps(meaning, sort_keys=True).encode())

    def from_file(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return state_dict

    def check(self) -> None:
        return


def _checksum(name: str, core: torch.Tensor) -> int:
    """Of one module's R as it is stored; its name is part of it, so that two R cannot change places."""
    numbers = core.detach().cpu().contiguous().view(torch.uint8).numpy()
    return zlib.crc32(numbers.tobytes(), zlib.crc32(f"{name} {tuple(core.shape)} {core.dtype}".encode()))
