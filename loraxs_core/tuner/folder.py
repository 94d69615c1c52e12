"""An adapter's folder without a model around it: read, verified against base weights, written.

Needs one base matrix at a time, so a `Checkpoint` (safetensors read lazily) serves as well as a loaded model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraxs_core.adapter_names import LORAXS, method_of
from loraxs_core.architecture import weight_of_module
from loraxs_core.bases import Bases, GivenBases, bases, identify
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError, CheckpointError
from loraxs_core.number_checksums import core_checksum, head_checksum
from loraxs_core.paths import atomic_folder, user_path
from loraxs_core.proof import Proof, Record, Verdict, encode, fingerprint, judge, ordered, sketch_rows
from loraxs_core.tuner.checksums import NO_PROOF, Pair, opened_proof, settings_checksum
from loraxs_core.tuner.config import LoraXSConfig
from loraxs_core.tuner.given import numbers, paired
from loraxs_core.tuner.portable import PREFIX, anchor, refuse

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Adapter:
    """A LoRA-XS adapter as its folder holds it.

    cores: module name -> R (r x r, float32). head: tensors of modules saved whole, by their name in the file. copies: the
    base's own embedding or head, which PEFT writes along where it is a target; the proof does not speak of them. proof: what the file
    says about the bases; already checked against `cores`, `config` and `frozen`. frozen: module name -> (A, B) where the file holds them.
    """

    folder: Path
    config: LoraXSConfig
    cores: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    copies: dict[str, torch.Tensor]
    proof: Proof
    frozen: dict[str, Pair]

    @property
    def ranks(self) -> dict[str, int]:
        return {name: len(core) for name, core in self.cores.items()}

    def verdict(self, name: str, matrix: np.ndarray, *, quantised: bool = False, model: str = "") -> tuple[Verdict, Bases]:
        """(what became of the bases of module `name` on the base weight `matrix` (out x in), the bases to use). model: see `bases`."""
        if name in self.frozen:
            return self._saved(name, matrix, quantised or self.proof.quantised)
        config, r = self.config, len(self.cores[name])
        drawn: dict[str, Any] = {"vectors": config.vectors, "seed": config.seed, "name": name}
        drawn["model"] = model or config.base_model_name_or_path or ""

        def rebuild(columns: int, gap: float) -> Bases:
            return bases(matrix, r, columns=columns, gap=gap, **drawn)

        found = bases(matrix, r, **drawn)
        outcome = judge(
            self.proof.records[name],
            fingerprint(found),
            rebuild,
            rms=lambda: float(np.sqrt(np.mean(np.square(matrix, dtype=np.float64)))),
            quantised=quantised or self.proof.quantised,
            seeded=config.vectors == "random",
        )
        return outcome, found if outcome.bases is None else outcome.bases

    def _saved(self, name: str, matrix: np.ndarray, quantised: bool) -> tuple[Verdict, Bases]:
        """As `verdict`, for A and B that the file holds: they are usable whatever the weight is."""
        trained, here = self.proof.records[name].identity, identify(matrix)[1]
        kept = "same" if here.same_weight(trained) else "copy" if here.rounded_copy(trained) else "moved"
        status = "quantised" if kept == "moved" and quantised else kept
        A, B = self.frozen[name]
        if (B.shape[0], A.shape[1]) != tuple(matrix.shape):
            status = "other"
        return Verdict(status, float(status == "other")), GivenBases.of(numbers(A), numbers(B), here)

    def restored_bases(self, name: str, matrix: np.ndarray, *, model: str = "") -> Bases:
        """The bases that R of module `name` was trained with, from the file or from the base weight `matrix` (out x in). model: see
        `bases`.

        Raises BasisMismatch naming the module when this is another weight.
        """
        outcome, found = self.verdict(name, matrix, model=model)
        refuse({name: outcome})
        return found


@dataclass(frozen=True)
class ModuleCheck:
    """The check of one module. status: ``same``, ``copy``, ``quantised``, ``other`` (`Verdict`), ``missing`` from the model, or ``moved``:
    another weight under A and B that the file holds, so that dW is what was trained and the weight it is added to is not.

    error: estimated relative error of dW (``other``, ``quantised``: relative distance of the bases). ok: whether it can be used.
    """

    name: str
    rank: int
    status: str
    error: float
    ok: bool


@dataclass(frozen=True)
class AdapterTensors:
    """What an adapter's folder holds, not checked against its proof. cores: as stored. proof: its bytes, None where there is none."""

    config: LoraXSConfig
    cores: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    copies: dict[str, torch.Tensor]
    proof: torch.Tensor | None
    frozen: dict[str, Pair]

    @property
    def ranks(self) -> dict[str, int]:
        return {name: len(core) for name, core in self.cores.items()}

    @property
    def meaning(self) -> dict[str, tuple[int, float]]:
        """Module name -> (rank, scaling) as the configuration has them."""
        return {name: (self.config.rank_of(name), self.config.scaling_of(name)) for name in self.cores}


def read_parts(folder: Path) -> AdapterTensors:
    """Reads an adapter's folder without verifying it. Raises AdapterError for what is missing, unreadable, or not LoRA-XS."""
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise AdapterError(f"{folder} holds no {file}; give the folder that save_pretrained wrote.")
    config = _read_config(folder)
    cores, head, copies, proof = {}, {}, {}, None
    sides: dict[str, dict[str, torch.Tensor]] = {".loraxs_A": {}, ".loraxs_B": {}}
    for key, tensor in _read_tensors(folder).items():
        name = key.removeprefix(PREFIX)
        if name.endswith(".loraxs_R"):
            cores[name.removesuffix(".loraxs_R")] = tensor
        elif name.endswith(".loraxs_proof"):
            proof = tensor
        elif name.endswith(tuple(sides)):
            sides[name[-len(".loraxs_A") :]][name[: -len(".loraxs_A")]] = tensor
        elif ".base_layer." in name:
            copies[name] = tensor
        else:
            head[name] = tensor
    if not cores:
        raise AdapterError(f"{folder / WEIGHTS} holds no LoRA-XS matrices; it is incomplete.")
    return AdapterTensors(config, cores, head, copies, proof, paired(*sides.values()))


def read_adapter(folder: str | os.PathLike) -> Adapter:
    """Reads a LoRA-XS adapter folder and checks it in itself; touches no base model.

    Raises AdapterError in one sentence for what is missing, damaged, edited, or not LoRA-XS.
    """
    folder = user_path(folder)
    parts = read_parts(folder)
    config, cores = parts.config, parts.cores
    if parts.proof is None:
        raise AdapterError(f"{folder / WEIGHTS}: {NO_PROOF}")
    opened = opened_proof(parts.proof.numpy(), cores, config, parts.meaning, parts.head, frozen=parts.frozen)
    dtype = getattr(torch, config.save_dtype)
    if strange := sorted(name for name, core in cores.items() if core.dtype != dtype):
        raise AdapterError(
            f"R of {strange[0]} is stored as {str(cores[strange[0]].dtype).removeprefix('torch.')} and {CONFIG} says "
            f"{config.save_dtype}; the folder's files do not belong together."
        )
    single = {name: core.to(torch.float32) for name, core in cores.items()}
    return Adapter(folder, config, single, parts.head, parts.copies, opened, parts.frozen)


def verify_adapter(folder: str | os.PathLike, base: Checkpoint | nn.Module) -> list[ModuleCheck]:
    """Checks every module of an adapter against the weights of `base`, one at a time.

    Raises AdapterError when the folder itself is damaged; a base that does not fit is no error here but the result.
    """
    adapter = read_adapter(folder)
    return [check for check, _ in _checks(adapter, base)]


def _checks(adapter: Adapter, base: Checkpoint | nn.Module) -> Iterator[tuple[ModuleCheck, Bases | None]]:
    for name, core in adapter.cores.items():
        try:
            matrix, quantised = base_matrix(base, name, adapter.config.task_type)
        except CheckpointError:
            yield ModuleCheck(name, len(core), "missing", 1.0, False), None
            continue
        if len(core) > min(matrix.shape):
            yield ModuleCheck(name, len(core), "other", 1.0, False), None
            continue
        copy = adapter.copies.get(f"{name}.base_layer.weight")
        if copy is not None and not quantised and not _are_same(copy, torch.from_numpy(np.ascontiguousarray(matrix))):
            yield ModuleCheck(name, len(core), "other", 1.0, False), None  # PEFT would put the copy in the base's place
            continue
        model = base.name if isinstance(base, Checkpoint) else str(getattr(base, "name_or_path", ""))
        verdict, found = adapter.verdict(name, matrix, quantised=quantised, model=model)
        yield ModuleCheck(name, len(core), verdict.status, verdict.error, verdict.usable), found


def _are_same(copy: torch.Tensor, matrix: torch.Tensor) -> bool:
    """Whether `copy` is `matrix`, or its transpose as Conv1D has it, in the copy's precision."""
    return any(torch.equal(copy, one.to(copy.dtype)) for one in (matrix, matrix.T))


def write_adapter(
    folder: str | os.PathLike,
    config: LoraXSConfig,
    cores: Mapping[str, np.ndarray],
    frozen: Mapping[str, Bases],
    *,
    head: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Writes what ``save_pretrained`` would: an adapter whose R matrices did not come from training here.

    cores: module name -> R (r x r); its rank must be what `config` says. frozen: module name -> the bases R refers to, as `bases`
    returns them for the base weight. head: tensors of modules saved whole. Raises RunError when `folder` cannot be written.
    """
    from safetensors.torch import save_file

    dtype = getattr(torch, config.save_dtype)
    stored = {name: torch.as_tensor(np.asarray(core)).to(torch.float32).to(dtype).contiguous() for name, core in cores.items()}
    records, meaning, pairs = {}, {}, {}
    for name, core in stored.items():
        r = config.rank_of(name)
        if tuple(core.shape) != (r, r) or frozen[name].rank < r:
            raise AdapterError(f"R of {name} is {'x'.join(map(str, core.shape))}, its configuration says rank {r}.")
        known = fingerprint(frozen[name].head(r))
        records[name] = Record(known.identity, core_checksum(core), known.sketch[: sketch_rows(r)])
        meaning[name] = (r, config.scaling_of(name))
        if config.save_bases:
            A, B = (torch.from_numpy(np.ascontiguousarray(one, np.float32)) for one in frozen[name].head(r).pair(config.sigma))
            pairs[name] = A, B
    order = ordered({name: r for name, (r, _) in meaning.items()})
    told = settings_checksum(config, [meaning[name] for name in order], [pairs[name] for name in order if pairs])
    proof = encode(Proof(told, head_checksum(head or {}), False, records))
    tensors = {f"{PREFIX}{name}.loraxs_R": core for name, core in stored.items()}
    tensors[f"{PREFIX}{anchor({name: r for name, (r, _) in meaning.items()})}.loraxs_proof"] = torch.from_numpy(proof)
    tensors |= pair_tensors(pairs)
    tensors |= {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in (head or {}).items()}
    with atomic_folder(folder) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        inference, config.inference_mode = config.inference_mode, True
        config.save_pretrained(str(temporary))
        config.inference_mode = inference
    return Path(folder)


def pair_tensors(pairs: Mapping[str, Pair]) -> dict[str, torch.Tensor]:
    """A and B by module name as a file has them."""
    return {f"{PREFIX}{name}.loraxs_{side}": one for name, pair in pairs.items() for side, one in zip("AB", pair, strict=True)}


def base_matrix(base: Checkpoint | nn.Module, name: str, task: str | None = None) -> tuple[np.ndarray, bool]:
    """(W0 (out x in) as float32 or float64, whether it is quantised) of the module `name` of a checkpoint or a model.

    task: PEFT's task type, which says what class of a checkpoint has that module (see `weight_of_module`). Raises CheckpointError when there is none.
    """
    if isinstance(base, Checkpoint):
        loaded, weight = weight_of_module(base, name, task)
        return loaded.read(weight), False
    try:
        module = base.get_submodule(name)
    except AttributeError:
        raise CheckpointError(f"The model has no module named {name!r}.") from None
    module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    backend = resolve_quantization_backend(module)
    weight = module.weight.data if backend is None else backend.get_base_weight(module)
    weight = weight.T if isinstance(module, Conv1D) else weight
    return weight.detach().to("cpu", torch.float32).numpy(), backend is not None


def _read_config(folder: Path) -> LoraXSConfig:
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not valid JSON; copy the adapter again.") from error
    if not isinstance(settings, dict):
        raise AdapterError(f"{path} is not a JSON object; copy the adapter again.")
    if method_of(settings) != LORAXS:
        raise AdapterError(f"{path} is for the method {method_of(settings)!r}, not for LoRA-XS (LORAXS).")
    known = {key: value for key, value in settings.items() if key in LoraXSConfig.__dataclass_fields__}
    try:
        return LoraXSConfig(**known)
    except (TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"{path} has a value of the wrong kind ({error}); restore the file.") from error


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{folder / WEIGHTS} is truncated or damaged ({error}); copy the adapter again.") from error
