"""A new proof for an adapter that was edited on purpose: averaged, scaled, cast, put together from others."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from loraxs_core.adapter_names import PREFIX, without_wrappers
from loraxs_core.bases import GivenBases, bases, identify
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError, one_line
from loraxs_core.number_checksums import core_checksum, head_checksum
from loraxs_core.paths import user_path
from loraxs_core.proof import Proof, Record, encode, fingerprint, ordered, sketch_rows
from loraxs_core.tuner.checksums import opened_proof, settings_checksum
from loraxs_core.tuner.config import SAVE_DTYPES, LoraXSConfig
from loraxs_core.tuner.folder import CONFIG, WEIGHTS, AdapterTensors, base_matrix, pair_tensors, read_adapter, read_parts
from loraxs_core.tuner.given import numbers, refuse_other_pairs
from loraxs_core.tuner.portable import AdapterSet, anchor


def sign(tensors: Mapping[str, torch.Tensor], model: nn.Module, adapter_name: str = "default") -> dict[str, torch.Tensor]:
    """The tensors of an adapter with a proof that says: these R belong to the bases that `adapter_name` has in `model`.

    tensors: as PEFT's ``get_peft_model_state_dict`` gives them, edited; a proof among them is left out of account. What is returned can
    be given to ``set_peft_model_state_dict`` or saved. Raises AdapterError when an R is missing, of another shape, or not finite.

    >>> from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    >>> from loraxs_core.tuner import LoraXSConfig
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
    >>> model = get_peft_model(net, LoraXSConfig(r=2, target_modules=["0"]))
    >>> half = {key: one / 2 if one.is_floating_point() else one for key, one in get_peft_model_state_dict(model).items()}
    >>> _ = set_peft_model_state_dict(model, sign(half, model))
    """
    return AdapterSet.of(model, adapter_name).signed({without_wrappers(key): one for key, one in tensors.items()}, model)


def resign(folder: str | os.PathLike, base: Checkpoint | nn.Module | None = None) -> Path:
    """Gives the adapter in `folder`, whose numbers or configuration were edited on purpose, a proof that fits them.

    base: the model its matrices belong to; None keeps what the old proof says of the bases. R is stored as it is found where that is a
    `save_dtype`, and the configuration says so. The file is read back before anything is reported. Raises AdapterError where the file
    holds no proof and no `base` is given, or R does not fit the configuration.
    """
    folder = user_path(folder)
    parts = read_parts(folder)
    dtypes = {core.dtype for core in parts.cores.values()}
    name = str(next(iter(dtypes))).removeprefix("torch.")
    config = copy(parts.config)
    if len(dtypes) == 1 and name in SAVE_DTYPES:
        config.save_dtype = name  # type: ignore[assignment]
    cores = {name: core.to(getattr(torch, config.save_dtype)) for name, core in parts.cores.items()}
    if base is not None:
        records, quantised = _records(parts, config, base)
    elif parts.proof is not None:
        old = opened_proof(parts.proof.numpy(), cores, config, parts.meaning, None, edited=True, frozen=parts.frozen)
        if parts.frozen:
            refuse_other_pairs(parts.frozen, old)
        records, quantised = old.records, old.quantised
    else:
        raise AdapterError(
            f"{folder / WEIGHTS} holds no proof of its bases to keep; give the base model, resign(folder, base)."
        )
    records = {name: replace(record, checksum=core_checksum(cores[name])) for name, record in records.items()}
    order = ordered({name: len(core) for name, core in cores.items()})
    pairs = [parts.frozen[name] for name in order if parts.frozen]
    told = settings_checksum(config, [parts.meaning[name] for name in order], pairs)
    proof = torch.from_numpy(encode(Proof(told, head_checksum(parts.head), quantised, records)))
    tensors = {f"{PREFIX}{name}.loraxs_R": core.contiguous() for name, core in cores.items()}
    tensors |= {f"{PREFIX}{name}": tensor for name, tensor in (parts.head | parts.copies).items()} | pair_tensors(parts.frozen)
    tensors[f"{PREFIX}{anchor(parts.ranks)}.loraxs_proof"] = proof
    _put_back(folder, tensors, config)
    return folder


def _records(parts: AdapterTensors, config: LoraXSConfig, base: Checkpoint | nn.Module) -> tuple[dict[str, Record], bool]:
    records, quantised = {}, False
    for name, core in parts.cores.items():
        matrix, is_quantised = base_matrix(base, name, config.task_type)
        if name in parts.frozen:
            A, B = parts.frozen[name]
            known = fingerprint(GivenBases.of(numbers(A), numbers(B), identify(matrix)[1]))
        else:
            known = fingerprint(bases(matrix, len(core), vectors=config.vectors, seed=config.seed, name=name))
        records[name] = Record(known.identity, 0, known.sketch[: sketch_rows(len(core))])
        quantised |= is_quantised
    return records, quantised


def _put_back(folder: Path, tensors: dict[str, torch.Tensor], config: LoraXSConfig) -> None:
    from safetensors.torch import save_file

    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | {"save_dtype": config.save_dtype}
    written = {WEIGHTS: folder / f"{WEIGHTS}.new", CONFIG: folder / f"{CONFIG}.new"}
    try:
        save_file(tensors, written[WEIGHTS], metadata={"format": "pt"})
        written[CONFIG].write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
        for name, path in written.items():
            os.replace(path, folder / name)
    except OSError as error:
        raise AdapterError(f"{folder} cannot be written ({one_line(error)}); nothing was signed.") from error
    finally:
        for path in written.values():
            path.unlink(missing_ok=True)
    read_adapter(folder)
