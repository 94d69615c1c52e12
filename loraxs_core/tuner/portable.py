"""An adapter as a whole: the layers that carry it, the proof saved with it, and the check when it comes back.

One `AdapterSet` is shared by all layers of an adapter. PEFT hands it the tensors of a file before they are loaded
(`from_file`); transformers' own ``load_adapter`` does not, it puts tensors straight into the modules, so every layer asks `check`
when it is next put into training or evaluation mode or used. Compiled code checks nothing.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from loraxs_core.adapter_names import PREFIX, without_wrappers
from loraxs_core.errors import AdapterError, BasisMismatch
from loraxs_core.proof import Fingerprint, Proof, Record, Verdict, decode, encode, judge, proof_bytes, quantise, sketch_rows
from loraxs_core.tuner.config import LoraXSConfig
from loraxs_core.tuner.layer import LoraXSLayer


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
        self._seen: torch.Tensor | None = None  # the proof tensor last looked at
        self._looked = self._verified = False
        self._whole: dict[str, AuxiliaryTrainingWrapper] = {}  # modules saved whole, by name

    @classmethod
    def bind(cls, model: nn.Module, adapter_name: str, config: LoraXSConfig, layers: Iterable[LoraXSLayer]) -> AdapterSet:
        """Makes the set of an adapter just injected into `layers` of `model`, known to all of them, with room for a proof."""
        found = {without_wrappers(layer.module_name): layer for layer in layers}
        shared = cls(adapter_name, found, config)
        for layer in found.values():
            layer.adapter_set[adapter_name] = shared
        holder = shared.holder
        holder.loraxs_proof[adapter_name] = torch.zeros(
            proof_bytes(shared.ranks), dtype=torch.uint8, device=holder.loraxs_R[adapter_name].device
        )
        shared._seen = holder.loraxs_proof[adapter_name]
        if config.modules_to_save:
            shared._whole = {
                name: module
                for name, module in model.named_modules()
                if isinstance(module, AuxiliaryTrainingWrapper) and adapter_name in module._adapters
            }
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

    def to_save(self, entries: dict[str, torch.Tensor], state_dict: dict, model: nn.Module) -> dict[str, torch.Tensor]:
        """What goes into the file: every R in the configured dtype, and the proof of the bases they mean something for.

        entries: this adapter's part of the model's state dict, keys with the adapter's name in them. state_dict: all of it.
        """
        dtype = getattr(torch, self.config.save_dtype)
        saved, cores, proof_key = {}, {}, None
        for wrapped, value in entries.items():
            key = without_wrappers(wrapped)  # so that it can be loaded where nothing, or something else, wraps the model
            if key.endswith(f".loraxs_proof.{self.name}"):
                proof_key = key
            elif key.endswith(f".loraxs_R.{self.name}"):
                module = key.removesuffix(f".loraxs_R.{self.name}").removeprefix(PREFIX)
                saved[key] = cores[module] = _whole(value.detach()).to(dtype)
            else:
                saved[key] = _whole(value)
        if proof_key is not None:
            saved[proof_key] = torch.from_numpy(self._proof(cores, head_checksum(_whole_modules(model, self.name, state_dict))))
        return saved

    def _proof(self, cores: dict[str, torch.Tensor], head: int) -> np.ndarray:
        records = {}
        for name, layer in self.layers.items():
            known = layer.trained_with.get(self.name)
            if known is None or cores[name].device.type == "meta":
                return np.zeros(proof_bytes(self.ranks), dtype=np.uint8)  # a model without weights has nothing to prove
            rows = sketch_rows(layer.r[self.name])
            records[name] = Record(known.identity, core_checksum(name, cores[name]), known.sketch[:rows])
        quantised = any(layer.quantization_backend is not None for layer in self.layers.values())
        return encode(Proof(self.settings(), head, quantised, records))

    def settings(self) -> int:
        modules = {name: (layer.r[self.name], layer.scaling[self.name]) for name, layer in self.layers.items()}
        return settings_checksum(self.config, modules)

    def from_file(self, state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
        """Checks the tensors of a file against this model, restores the bases it was trained with, and hands R on in float32.

        state_dict: keys as in the model. Raises AdapterError for a file that is incomplete, damaged or edited, BasisMismatch
        naming the modules when the base is not the one it was trained with.
        """
        cores, proof, loaded = {}, None, dict(state_dict)
        for place, value in state_dict.items():
            key = without_wrappers(place)
            if key.endswith(f".loraxs_R.{self.name}"):
                cores[key.removesuffix(f".loraxs_R.{self.name}").removeprefix(PREFIX)] = value
                loaded[place] = value.to(torch.float32)
            elif key.endswith(f".loraxs_proof.{self.name}"):
                proof, loaded[place] = value, torch.zeros_like(value)
            elif ".loraxs_" in key:
                raise AdapterError(
                    f"The adapter's file holds {key!r}, which has no place in this model; it belongs to another one."
                )
        if proof is None:
            raise AdapterError("The adapter's file holds no proof of its bases (loraxs_proof); copy the folder again.")
        self._verify(proof.cpu().numpy(), cores, head=head_checksum(_whole_modules(model, self.name, state_dict)))
        return loaded

    @property
    def proof_key(self) -> str:
        """The proof's name in a file."""
        return f"{PREFIX}{anchor(self.ranks)}.loraxs_proof"

    def take(self, proof: torch.Tensor, cores: Mapping[str, torch.Tensor]) -> None:
        """Verifies the numbers of a file, as `from_file` does, and puts them into the layers. cores: module name -> R as stored."""
        self._verify(proof.numpy(), cores, head=0)
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.loraxs_R[self.name].copy_(cores[name])

    def check(self, *, loading: bool = False) -> None:
        """Verifies a proof that was put into the holder since the last look, as transformers' ``load_adapter`` does.

        loading: whether tensors have just been put into the model, so that modules saved whole still are what the file said.
        """
        blob = self.holder.loraxs_proof[self.name]
        if (blob is self._seen and self._looked) or blob.device.type == "meta":
            return
        self._seen, self._looked = blob, True
        cores = {name: layer.loraxs_R[self.name] for name, layer in self.layers.items()}
        if blob.any():
            dtype = getattr(torch, self.config.save_dtype)
            head = self._loaded_head() if loading else None
            self._verify(blob.cpu().numpy(), {name: core.detach().to(dtype) for name, core in cores.items()}, head=head)
            blob.zero_()  # it speaks of R as it was loaded; training may change it from here on
        elif not self._verified and any(getattr(core, "_is_hf_initialized", False) for core in cores.values()):
            raise AdapterError("The adapter's file holds no proof of its bases (loraxs_proof); copy the folder again.")

    def _loaded_head(self) -> int | None:
        """Checksum of the modules saved whole as they are in the model; None when 16 bits may have rounded them there."""
        held: dict[str, torch.Tensor] = {}
        for name, module in self._whole.items():
            numbers = module.state_dict()
            for saved, inside in module.adapter_state_dict_load_map(self.name).items():
                held[f"{name}.{saved}"] = numbers[inside]
        return head_checksum(held) if all(one.dtype == torch.float32 for one in held.values()) else None

    def _verify(self, blob: np.ndarray, cores: Mapping[str, torch.Tensor], head: int | None) -> None:
        """Raises unless R is what was saved and the bases are what they were; then gives layers the bases they need."""
        ranks = self.ranks
        proof = opened_proof(blob, cores, ranks, self.settings(), head)
        verdicts = {}
        for name, layer in self.layers.items():
            key = _own_key(proof.records[name], self.config)
            if key in layer.loraxs_A:  # another adapter that was trained on the same weights has been turned already
                layer.use_bases_of(self.name, key)
            else:
                verdicts[name] = self._judge(name, proof)
        self._settle(verdicts, proof)
        self._verified = True

    def _judge(self, name: str, proof: Proof) -> Verdict:
        layer = self.layers[name]
        known, r = layer.trained_with.get(self.name), layer.r[self.name]
        if known is None:
            raise AdapterError(f"{name} has no weights (meta device), so the adapter cannot be checked; load the base first.")
        return judge(
            proof.records[name],
            known,
            lambda columns, gap: layer.rebuild(self.config, r, columns, gap),
            rms=lambda: float(layer.base_matrix().float().square().mean().sqrt()),
            quantised=proof.quantised or layer.quantization_backend is not None,
            seeded=self.config.vectors == "random",
        )

    def _settle(self, verdicts: dict[str, Verdict], proof: Proof) -> None:
        refuse(verdicts)
        doubtful = {name: one.error for name, one in verdicts.items() if one.status == "quantised"}
        if doubtful:
            warnings.warn(
                f"The base model is a quantised form of the one this adapter was trained with (or the other way round): the bases "
                f"of {_listed(sorted(doubtful))} differ by up to {max(doubtful.values()):.0%}, and so does what the adapter does. "
                "Load it on the base it was trained with.",
                UserWarning,
                stacklevel=2,
            )
        for name, verdict in verdicts.items():
            layer, record = self.layers[name], proof.records[name]
            if verdict.bases is not None:
                known = Fingerprint(record.identity, record.sketch, np.asarray(verdict.bases.S, dtype=np.float64))
                layer.use_bases(self.name, _own_key(record, self.config), verdict.bases, known)


def _own_key(record: Record, config: LoraXSConfig) -> str:
    """What bases are kept under that had to be turned to be those of `record`."""
    identity = record.identity
    digest = zlib.crc32(quantise(record.sketch).tobytes(), zlib.crc32(repr(identity).encode()))
    return f"own-{config.vectors}-{config.sigma}-{record.sketch.shape[1]}-{identity.exact:08x}{digest:08x}"


def opened_proof(
    blob: np.ndarray, cores: Mapping[str, torch.Tensor], ranks: Mapping[str, int], settings: int, head: int | None
) -> Proof:
    """The proof in `blob`, after checking that `cores` (module name -> R as stored) are the matrices it was made for.

    settings: what `settings_checksum` gives for the configuration at hand. head: what `head_checksum` gives for the modules saved
    whole; None when that cannot be known. Raises AdapterError in one sentence.
    """
    if missing := sorted(ranks.keys() - cores.keys()):
        raise AdapterError(f"The adapter's file holds no R for {_listed(missing)}; it is incomplete or for another model.")
    for name, r in ranks.items():
        if tuple(cores[name].shape) != (r, r):
            raise AdapterError(
                f"R of {name} is {'x'.join(map(str, cores[name].shape))} in the file and {r}x{r} in its configuration; "
                "the folder's files do not belong together."
            )
    if broken := sorted(name for name in ranks if not torch.isfinite(cores[name]).all()):
        raise AdapterError(f"R of {_listed(broken)} holds NaN or infinite numbers; the adapter is damaged.")
    proof = decode(blob, dict(ranks))
    if proof.settings != settings:
        raise AdapterError(
            "adapter_config.json does not say what the adapter was trained with (rank, alpha, vectors, sigma or targets were "
            "changed, or modules of this model are named differently); restore the file."
        )
    changed = sorted(name for name in ranks if core_checksum(name, cores[name]) != proof.records[name].checksum)
    if changed or (head is not None and head != proof.head):
        what = f"R of {_listed(changed)}" if changed else "a module saved whole"
        raise AdapterError(
            f"The adapter's file was changed or damaged after it was saved: {what} is not what it was; copy it again."
        )
    return proof


def settings_checksum(config: LoraXSConfig, modules: Mapping[str, tuple[int, float]]) -> int:
    """Of everything in the configuration that gives R its meaning. modules: name -> (rank, scaling)."""
    meaning = {
        "vectors": config.vectors,
        "sigma": config.sigma,
        "seed": config.seed if config.vectors == "random" else None,
        "modules": {name: [rank, float(scaling)] for name, (rank, scaling) in modules.items()},
    }
    return zlib.crc32(json.dumps(meaning, sort_keys=True).encode())


def refuse(verdicts: Mapping[str, Verdict]) -> None:
    """Raises BasisMismatch naming the modules whose bases are not, and cannot be made, those of training."""
    bad = {name: one for name, one in verdicts.items() if not one.usable}
    if not bad:
        return
    worst = max(one.error for one in bad.values())
    if any(one.status == "other" for one in bad.values()):
        strangers = sorted(name for name, one in bad.items() if one.status == "other")
        raise BasisMismatch(
            f"This is not the base model the adapter was trained with: {len(strangers)} of {len(verdicts)} weights differ "
            f"({_listed(strangers)}; their bases by up to {worst:.0%}). Load the adapter on its own base model."
        )
    kind = "quantised" if any(one.status == "quantised" for one in bad.values()) else "16-bit"
    raise BasisMismatch(
        f"The bases of {_listed(sorted(bad))} cannot be restored from this {kind} copy of the base model (off by up to "
        f"{worst:.0%}). Load the base in the precision the adapter was trained with."
    )


def _whole_modules(model: nn.Module, adapter_name: str, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of modules saved whole, by the name they have in a file, found in a state dict with the model's keys. The names come
    from the state dict: wrappers put themselves into the paths of modules and not always into the keys (FSDP), or into both."""
    keys = {without_wrappers(key): key for key in state_dict}
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and adapter_name in module._adapters:
            path = without_wrappers(name)
            for saved, held in module.adapter_state_dict_load_map(adapter_name).items():
                if key := keys.get(without_wrappers(f"{path}.{held}")):
                    found[f"{path}.{without_wrappers(saved)}".removeprefix(PREFIX)] = state_dict[key]
    return found


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which processes hold shares (FSDP2); any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def head_checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    """Of modules saved whole, whatever precision they are held in; 0 when there are none."""
    total = 0
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(_whole(tensor.detach()).cpu().to(torch.float32).contiguous().numpy().tobytes(), total)
    return total


def core_checksum(name: str, core: torch.Tensor) -> int:
    """Of one module's R as it is stored; its name is part of it, so that two R cannot change places."""
    numbers = core.detach().cpu().contiguous().view(torch.uint8).numpy()
    return zlib.crc32(numbers.tobytes(), zlib.crc32(f"{name} {tuple(core.shape)} {core.dtype}".encode()))


def _listed(names: list[str]) -> str:
    """The first few of `names`."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
