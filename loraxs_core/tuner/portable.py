"""An adapter as a whole: the layers that carry it, the proof saved with it, and the check when it comes back.

One `AdapterSet` is shared by all layers of an adapter. PEFT hands it the tensors of a file before they are loaded
(`from_file`); transformers' own ``load_adapter`` does not, it puts tensors straight into the modules, so every layer asks `check`
when it is next put into training or evaluation mode or used. Compiled code checks nothing.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from loraxs_core.adapter_names import PREFIX, ModulePaths, without_wrappers
from loraxs_core.bases import Identity
from loraxs_core.errors import AdapterError, BasisMismatch
from loraxs_core.number_checksums import core_checksum, head_checksum, whole
from loraxs_core.proof import (
    Fingerprint,
    Proof,
    Record,
    Verdict,
    encode,
    judge,
    ordered,
    proof_bytes,
    quantise,
    sketch_rows,
)
from loraxs_core.tuner.checksums import NO_PROOF, Pair, Pairs, listed, opened_proof, refuse_misfits, settings_checksum
from loraxs_core.tuner.config import LoraXSConfig
from loraxs_core.tuner.given import are_wanted, of_the_base, pair_fingerprint, paired, refuse_other_pairs
from loraxs_core.tuner.layer import LoraXSLayer
from loraxs_core.tuner.verifying import mode


def saved_tensors(
    modules: Mapping[str, tuple[int, int, int]], config: LoraXSConfig, base_dtypes: Mapping[str, str] | None = None
) -> dict[str, tuple[tuple[int, ...], str]]:
    """What ``save_pretrained`` writes for an adapter on `modules` {name: (out, in, rank)}: {key: (shape, dtype)}.

    base_dtypes: of modules' weights, and so of A and B where they are saved; float32 where not named. Modules saved whole (``modules_to_save``) come on top. PEFT adds the safetensors metadata {"format": "pt"}.
    """
    tensors = {f"{PREFIX}{name}.loraxs_R": ((rank, rank), config.save_dtype) for name, (_, _, rank) in modules.items()}
    if config.save_bases:
        for name, (out, into, rank) in modules.items():
            dtype = (base_dtypes or {}).get(name, "float32")
            tensors[f"{PREFIX}{name}.loraxs_A"] = ((rank, into), dtype)
            tensors[f"{PREFIX}{name}.loraxs_B"] = ((out, rank), dtype)
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
        self._holder = layers[min(layers)]  # `anchor`, which asks for every rank; every forward wants to know
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
        return self._holder

    @property
    def is_trained(self) -> bool:
        """Whether the R beside the proof wants a gradient."""
        R = self._holder.loraxs_R._parameters.get(self.name)
        return R is not None and R.requires_grad

    def to_save(self, entries: dict[str, torch.Tensor], state_dict: dict, model: nn.Module) -> dict[str, torch.Tensor]:
        """What goes into the file: every R in the configured dtype, and the proof of the bases they mean something for.

        entries: this adapter's part of the model's state dict, keys with the adapter's name in them. state_dict: all of it.
        """
        if are_wanted():
            self._settle_pending()
        dtype = getattr(torch, self.config.save_dtype)
        saved, cores, proof_key = {}, {}, None
        for wrapped, value in entries.items():
            key = without_wrappers(wrapped)  # so that it can be loaded where nothing, or something else, wraps the model
            if key.endswith(f".loraxs_proof.{self.name}"):
                proof_key = key
            elif key.endswith(f".loraxs_R.{self.name}"):
                module = key.removesuffix(f".loraxs_R.{self.name}").removeprefix(PREFIX)
                saved[key] = cores[module] = whole(value.detach()).to(dtype)
            elif not key.endswith((f".loraxs_A.{self.name}", f".loraxs_B.{self.name}")):
                saved[key] = whole(value)
        prefix = "" if proof_key is None else proof_key.removesuffix(f"{anchor(self.ranks)}.loraxs_proof.{self.name}")
        for name, (A, B) in self._pairs().items():
            saved |= {f"{prefix}{name}.loraxs_A.{self.name}": A, f"{prefix}{name}.loraxs_B.{self.name}": B}
        if proof_key is not None:
            saved[proof_key] = torch.from_numpy(self._proof(cores, head_checksum(_whole_modules(model, self.name, state_dict))))
        return saved

    def signed(self, tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
        """`tensors` of a file, R in the configured dtype, with a proof that they belong to this adapter's bases."""
        dtype = getattr(torch, self.config.save_dtype)
        cores = {name: tensors[key] for name in self.layers if (key := f"{PREFIX}{name}.loraxs_R") in tensors}
        refuse_misfits(cores, self.ranks)
        signed = {key: one for key, one in tensors.items() if not key.endswith((".loraxs_proof", ".loraxs_A", ".loraxs_B"))}
        for name, (A, B) in self._pairs().items():
            signed |= {f"{PREFIX}{name}.loraxs_A": A, f"{PREFIX}{name}.loraxs_B": B}
        cores = {name: core.detach().to(dtype) for name, core in cores.items()}
        signed |= {f"{PREFIX}{name}.loraxs_R": core for name, core in cores.items()}
        head = {}
        for name, module in self._whole.items():
            for saved in module.adapter_state_dict_load_map(self.name):
                if (key := f"{PREFIX}{without_wrappers(name).removeprefix(PREFIX)}.{saved}") in tensors:
                    head[key.removeprefix(PREFIX)] = tensors[key]
        signed[self.proof_key] = torch.from_numpy(self._proof(cores, head_checksum(head)))
        return signed

    def _proof(self, cores: dict[str, torch.Tensor], head: int) -> np.ndarray:
        records = {}
        for name, layer in self.layers.items():
            known = layer.trained_with.get(self.name)
            if known is None or cores[name].device.type == "meta":
                return np.zeros(proof_bytes(self.ranks), dtype=np.uint8)  # a model without weights has nothing to prove
            rows = sketch_rows(layer.r[self.name])
            records[name] = Record(known.identity, core_checksum(cores[name]), known.sketch[:rows])
        quantised = any(layer.quantization_backend is not None for layer in self.layers.values())
        meaning = self.meaning
        order, pairs = ordered(self.ranks), self._pairs()
        told = settings_checksum(self.config, [meaning[name] for name in order], [pairs[name] for name in order if pairs])
        return encode(Proof(told, head, quantised, records))

    def _pairs(self) -> dict[str, Pair]:
        """Module name -> the (A, B) that go into the file; none unless `save_bases`."""
        if not self.config.save_bases:
            return {}
        pairs = {name: layer.frozen(self.name) for name, layer in self.layers.items()}
        return {name: (A.detach().contiguous(), B.detach().contiguous()) for name, (A, B) in pairs.items()}

    def _settle_pending(self) -> None:
        """Builds the bases that were to come with a file, where none was loaded."""
        for layer in self.layers.values():
            if self.name in layer.awaiting_file:
                layer.build_instead(self.name)

    @property
    def meaning(self) -> dict[str, tuple[int, float]]:
        """Module name -> (rank, scaling) as the configuration has them."""
        return {name: (layer.r[self.name], layer.configured_scaling[self.name]) for name, layer in self.layers.items()}

    def from_file(
        self, state_dict: dict[str, torch.Tensor], model: nn.Module, places: Mapping[str, str]
    ) -> dict[str, torch.Tensor]:
        """Checks the tensors of a file against this model, restores the bases it was trained with, and hands R on in float32.

        state_dict: keys as in the model. places: its keys without wrappers -> as they are. Raises AdapterError for a file that is
        incomplete, damaged or edited, BasisMismatch naming the modules when the base is not the one it was trained with.
        """
        cores, proof, loaded = {}, None, {}
        sides: dict[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}}
        paths = ModulePaths(self.layers)
        for place, value in state_dict.items():
            path, _, part = without_wrappers(place).rpartition(".loraxs_")
            part = part.removesuffix(f".{self.name}")
            name = path.removeprefix(PREFIX)
            name = name if name in self.layers else paths.find(name)
            if part not in ("R", "proof", "A", "B"):
                loaded[place] = value
            elif part in sides and name is not None:
                sides[part][name] = value
            elif part == "proof":
                proof = value
            elif part == "R" and name is not None and name not in cores:
                cores[name] = value
                loaded[self._place_of(name, "R", places)] = value.to(torch.float32)
            else:
                raise AdapterError(f"The adapter holds {place!r}, which has no place in this model; it belongs to another one.")
        if proof is not None:
            holder = self.holder
            key = self._place_of(anchor(self.ranks), "proof", places)
            loaded[key] = torch.zeros_like(holder.loraxs_proof[self.name], device="cpu")
        held = _whole_modules(model, self.name, state_dict)
        self._verify(None if proof is None else proof.cpu().numpy(), cores, held, paired(sides["A"], sides["B"]))
        return loaded

    def _place_of(self, module: str, part: str, places: Mapping[str, str]) -> str:
        plain = f"{module}.loraxs_{part}.{self.name}"
        return places.get(f"{PREFIX}{plain}", places.get(plain, plain))

    @property
    def proof_key(self) -> str:
        """The proof's name in a file."""
        return f"{PREFIX}{anchor(self.ranks)}.loraxs_proof"

    def take(self, proof: torch.Tensor | None, cores: Mapping[str, torch.Tensor], frozen: Pairs | None = None) -> None:
        """Verifies the numbers of a file, as `from_file` does, and puts them into the layers. cores: module name -> R as stored.
        frozen: likewise -> (A, B)."""
        self._verify(None if proof is None else proof.numpy(), cores, {}, frozen or {})
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
        arrived = {name: pair for name, layer in self.layers.items() if (pair := layer.arrived(self.name)) is not None}
        if blob.any():
            dtype = getattr(torch, self.config.save_dtype)
            held = self._loaded_head() if loading else None
            self._verify(blob.cpu().numpy(), {name: core.detach().to(dtype) for name, core in cores.items()}, held, arrived)
            blob.zero_()  # it speaks of R as it was loaded; training may change it from here on
        elif not self._verified and any(getattr(core, "_is_hf_initialized", False) for core in cores.values()):
            self._verify(None, cores, None, arrived)
        elif not self.config.start_follows:
            self._settle_pending()

    def _loaded_head(self) -> dict[str, torch.Tensor] | None:
        """The modules saved whole as they are in the model; None when 16 bits may have rounded them there."""
        held: dict[str, torch.Tensor] = {}
        for name, module in self._whole.items():
            numbers = module.state_dict()
            for saved, inside in module.adapter_state_dict_load_map(self.name).items():
                held[f"{name}.{saved}"] = numbers[inside]
        return held if all(one.dtype == torch.float32 for one in held.values()) else None

    def _verify(
        self,
        blob: np.ndarray | None,
        cores: Mapping[str, torch.Tensor],
        head: Mapping[str, torch.Tensor] | None,
        frozen: Pairs,
    ) -> None:
        """Raises unless R is what was saved and the bases are what they were; then gives layers the bases they need.

        blob: the proof, None where there is none. head: modules saved whole, None where they may have been rounded.
        frozen: module name -> (A, B) of the file, none where it holds none.
        """
        if not frozen:
            self._settle_pending()
        if mode() == "off":
            for name, (A, B) in frozen.items():
                self.layers[name].adopt(self.name, A, B)
            self._verified = True
            return
        if blob is None:
            raise AdapterError(NO_PROOF)
        weights = {name: who for name, layer in self.layers.items() if (who := layer.known_identity(self.name)) is not None}
        edited = mode() == "bases"
        proof = opened_proof(blob, cores, self.config, self.meaning, head, weights, edited=edited, frozen=frozen)
        if frozen:
            self._adopt(frozen, proof, weights)
            self._verified = True
            return
        verdicts = {}
        for name, layer in self.layers.items():
            key = _own_key(proof.records[name], self.config)
            if key in layer.loraxs_A:  # another adapter that was trained on the same weights has been turned already
                layer.use_bases_of(self.name, key)
            else:
                verdicts[name] = self._judge(name, proof)
        self._settle(verdicts, proof)
        self._verified = True

    def _adopt(self, frozen: Pairs, proof: Proof, weights: Mapping[str, Identity]) -> None:
        """Gives every layer the A and B of the file, which need no weight, and says so where the weight is not that of training."""
        if mode() == "bases":
            refuse_other_pairs(frozen, proof)
        for name, (A, B) in frozen.items():
            record = proof.records[name]
            self.layers[name].adopt(self.name, A, B, pair_fingerprint(record.identity, record.sketch, A, B))
        quantised = proof.quantised or any(layer.quantization_backend is not None for layer in self.layers.values())
        if said := of_the_base({name: record.identity for name, record in proof.records.items()}, weights, quantised):
            warnings.warn(said, UserWarning, stacklevel=2)

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
                f"of {listed(sorted(doubtful))} differ by up to {max(doubtful.values()):.0%}, and so does what the adapter does. "
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
            f"({listed(strangers)}; their bases by up to {worst:.0%}). Load the adapter on its own base model."
        )
    kind = "quantised" if any(one.status == "quantised" for one in bad.values()) else "16-bit"
    raise BasisMismatch(
        f"The bases of {listed(sorted(bad))} cannot be restored from this {kind} copy of the base model (off by up to "
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
