"""What of an adapter its proof has checksums of, and whether tensors and a configuration are still what they were."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from loraxs_core.bases import Identity
from loraxs_core.errors import AdapterError
from loraxs_core.number_checksums import core_checksum, head_checksum, pair_checksum
from loraxs_core.proof import RESTORE, Proof, decode, ordered, placed
from loraxs_core.tuner.config import LoraXSConfig

NO_PROOF = (
    "There is no proof of the bases (loraxs_proof) beside the adapter's matrices; restore what was saved, or sign them "
    '(loraxs_core.tuner.sign), or load them unverified with verify="off".'
)
Meaning = Mapping[str, tuple[int, float]]  # module -> (rank, scaling)
Pair = tuple[torch.Tensor, torch.Tensor]  # A (r x in), B (out x r)
Pairs = Mapping[str, Pair]  # by module


def opened_proof(
    blob: np.ndarray,
    cores: Mapping[str, torch.Tensor],
    config: LoraXSConfig,
    meaning: Meaning,
    head: Mapping[str, torch.Tensor] | None,
    weights: Mapping[str, Identity] | None = None,
    *,
    edited: bool = False,
    frozen: Pairs | None = None,
) -> Proof:
    """The proof in `blob`, its records by today's names, after checking that it was made for `cores` (module name -> R as stored).

    head: the modules saved whole; None where they may have been rounded since. weights: the modules' weights, by which
    renamed modules are recognised; None where names are those of the file. edited: let R, the configuration and modules saved whole be
    anything, as long as R has the right shape and is finite. frozen: the A and B of all modules where the file has them. Raises AdapterError in one sentence.
    """
    ranks = {name: rank for name, (rank, _) in meaning.items()}
    refuse_misfits(cores, ranks)
    if frozen:
        refuse_misfitting_pairs(frozen, ranks)
    proof = decode(blob, ranks, edited=edited)
    names = {name: name for name in ranks}
    if edited:
        checksums = None
    elif proof.version == 1:
        checksums = {name: core_checksum(cores[name], name) for name in ranks}
    else:
        checksums = {name: core_checksum(cores[name]) for name in ranks}
    changed: list[str] = []
    if proof.version > 1 and weights is not None:
        names, changed = placed(proof.records, checksums, weights)
    elif checksums is not None:
        changed = sorted(name for name in ranks if checksums[name] != proof.records[name].checksum)
    if changed:
        cast = sorted(name for name in changed if cores[name].dtype != getattr(torch, config.save_dtype))
        how = f"it is {str(cores[cast[0]].dtype).removeprefix('torch.')} now and was" if cast else "it was"
        raise AdapterError(
            f"R of {listed(changed)} is not what it was when the adapter was saved: "
            f"{how} {f'saved as {config.save_dtype}' if cast else 'edited or damaged'}; {RESTORE}"
        )
    if edited:
        return Proof(proof.settings, proof.head, proof.quantised, {new: proof.records[old] for new, old in names.items()})
    by_record = {old: new for new, old in names.items()}
    order = [by_record[name] for name in ordered(ranks, proof.version)]
    told = [meaning[name] for name in order]
    pairs = [frozen[name] for name in order] if frozen else []
    if proof.settings != (
        settings_checksum(config, told, pairs) if proof.version > 1 else _named_settings_checksum(config, meaning)
    ):
        which = "the saved bases (loraxs_A, loraxs_B) are not what they were, or " if frozen else ""
        raise AdapterError(
            f"{which}adapter_config.json does not say what the adapter was trained with (rank, alpha, vectors, sigma or targets were "
            f"changed); {RESTORE}"
        )
    if head is not None and head_checksum(head, named=proof.version == 1) != proof.head:
        raise AdapterError(f"A module saved whole is not what it was when the adapter was saved; {RESTORE}")
    return Proof(proof.settings, proof.head, proof.quantised, {new: proof.records[old] for new, old in names.items()})


def refuse_misfits(cores: Mapping[str, torch.Tensor], ranks: Mapping[str, int]) -> None:
    """Raises AdapterError unless there is a finite R of its shape for every module."""
    if missing := sorted(ranks.keys() - cores.keys()):
        raise AdapterError(f"There is no R for {listed(missing)}; the adapter is incomplete or for another model.")
    for name, r in ranks.items():
        if tuple(cores[name].shape) != (r, r):
            raise AdapterError(
                f"R of {name} is {'x'.join(map(str, cores[name].shape))} in the file and {r}x{r} in its configuration; "
                "the folder's files do not belong together."
            )
    if broken := sorted(name for name in ranks if not torch.isfinite(cores[name]).all()):
        raise AdapterError(f"R of {listed(broken)} holds NaN or infinite numbers; the adapter is damaged.")


def refuse_misfitting_pairs(frozen: Pairs, ranks: Mapping[str, int]) -> None:
    """Raises AdapterError unless there are a finite A (r x …) and B (… x r) for every module, or for none."""
    if missing := sorted(ranks.keys() - frozen.keys()):
        raise AdapterError(f"The file holds A and B of other modules and not of {listed(missing)}; the adapter is incomplete.")
    for name, r in ranks.items():
        A, B = frozen[name]
        if A.ndim != 2 or B.ndim != 2 or (len(A), B.shape[1]) != (r, r):
            raise AdapterError(
                f"The saved A and B of {name} do not fit its rank {r}; the folder's files do not belong together."
            )
        if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
            raise AdapterError(f"The saved A and B of {name} hold NaN or infinite numbers; the adapter is damaged.")


def settings_checksum(config: LoraXSConfig, meaning: Iterable[tuple[int, float]], pairs: Iterable[Pair] = ()) -> int:
    """Of everything that gives R its meaning and is not in the base. meaning: (rank, scaling) of every module in the proof's order.
    pairs: their A and B likewise where they are saved."""
    sums = [pair_checksum(A, B) for A, B in pairs]
    return _checksum(config, [[rank, float(scaling)] for rank, scaling in meaning], **({"bases": sums} if sums else {}))


def _named_settings_checksum(config: LoraXSConfig, meaning: Meaning) -> int:
    """As `settings_checksum` in the first layout of the proof."""
    return _checksum(config, {name: [rank, float(scaling)] for name, (rank, scaling) in meaning.items()})


def _checksum(config: LoraXSConfig, modules: object, **more: object) -> int:
    meaning = {
        "vectors": config.vectors,
        "sigma": config.sigma,
        "seed": config.seed if config.vectors == "random" else None,
        "modules": modules,
        **more,
    }
    return zlib.crc32(json.dumps(meaning, sort_keys=True).encode())


def listed(names: list[str]) -> str:
    """The first few of `names`."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
