"""Many adapters in one batch: every sample through its own R, one product a module.

Adapters of one weight share A and B, so that only R differs from sample to sample: ``x_i A^T`` is one product for the whole batch, then
every sample meets its own R in one ``bmm``, then one product with B^T. The R of the adapters in the batch are stacked once for a call of
forward or generate (`Mixture`) as ``[adapters, r, r]`` and gathered by row. Smaller ranks are padded with zeros: the first rows of A are
the smaller basis. All that is not a product costs as much as one here, so what can be is found out once for all modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from loraxs_core.tuner.cores import Cores

EACH = torch.empty(0, dtype=torch.long)
BASE = "__base__"  # PEFT's name for no adapter


class Carrier(Protocol):
    """What a LoRA-XS layer says of its adapters, by name: R, rank, scaling, and which A and B they share."""

    loraxs_R: Cores
    r: dict[str, int]
    scaling: dict[str, float]
    basis_key: dict[str, str]


@dataclass(frozen=True)
class Share:
    """The samples of a batch whose adapters share A and B in one module.

    adapter: one of them with the largest rank, which has that A and B. cores: their scaled R, [adapters, r, r], or [r, r] where all
    samples have the same. which: index into `cores` of every sample (of `rows`), `EACH` where that is its own, None with one R. rows:
    the samples' indices, None for the whole batch.
    """

    adapter: str
    cores: torch.Tensor
    which: torch.Tensor | None
    rows: torch.Tensor | None

    def through(self, inner: torch.Tensor, transposed: bool) -> torch.Tensor:
        """``inner_i @ R_i`` of every sample, or ``inner_i @ R_i^T``. inner: (samples, …, r)."""
        cores = self.cores.mT if transposed else self.cores
        inner = inner.to(cores.dtype)
        if self.which is None:
            return inner @ cores
        flat = inner.reshape(len(inner), -1, inner.shape[-1])
        return torch.bmm(flat, cores if self.which is EACH else cores[self.which]).reshape(inner.shape)


@dataclass(frozen=True)
class Members:
    """The adapters of a batch that share bases, in any module where the batch falls apart in the same way. names, which, rows: as in
    `Share`. padded: whether the other samples meet zeros."""

    names: list[str]
    which: torch.Tensor | None
    rows: torch.Tensor | None
    padded: bool = False

    def share(self, layer: Carrier) -> Share:
        largest = max(self.names, key=layer.r.__getitem__)
        cores = layer.loraxs_R({name: layer.scaling[name] for name in self.names}, layer.r[largest])
        if self.which is None:
            cores = cores[0]
        elif self.padded:
            cores = torch.cat([cores, torch.zeros_like(cores[:1])])
        return Share(largest, cores, self.which, self.rows)


class Mixture:
    """Which sample of a batch goes through which adapter, for the time of one forward or generate call.

    names: an adapter, or ``__base__``, for every sample. Raises ValueError, as PEFT does, where a batch has another length.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        codes: dict[str, int] = {}
        for name in self.names:
            codes.setdefault(name, len(codes))
        self.distinct = [*codes]
        self._codes = torch.tensor([codes[name] for name in self.names])
        self._shares: dict[int, list[Share]] = {}
        self._members: dict[
            tuple, list[Members]
        ] = {}  # by the bases that the adapters have, of which most modules say the same

    def shares(self, layer: Carrier, x: torch.Tensor) -> list[Share]:
        """What `layer` has to add, once for all samples with the same bases; samples without an adapter there are in none."""
        if x.shape[0] != len(self.names):
            raise ValueError(
                f"Length of `adapter_names` should be the same as the number of inputs, but got {len(self.names)} and "
                f"{len(x)} respectively."
            )
        found = self._shares.get(id(layer))
        if found is None:
            bases = (*map(layer.basis_key.get, self.distinct), x.device)
            if bases not in self._members:
                self._members[bases] = self._divide(bases[:-1], x.device)
            found = self._shares[id(layer)] = [members.share(layer) for members in self._members[bases]]
        return found

    def _divide(self, bases: Sequence[str | None], device: torch.device) -> list[Members]:
        """The members of each basis. bases: that of every distinct name, None where it adapts nothing."""
        groups: dict[str, list[int]] = {}  # basis -> codes of its adapters
        for code, basis in enumerate(bases):
            if basis is not None:
                groups.setdefault(basis, []).append(code)
        return [self._of_one_basis(codes, device) for codes in groups.values()]

    def _of_one_basis(self, codes: list[int], device: torch.device) -> Members:
        names, count = [self.distinct[code] for code in codes], len(codes)
        if count == len(self.distinct):
            each = EACH if count == len(self.names) else self._codes.to(device)
            return Members(names, each if count > 1 else None, None)
        slots = torch.full((len(self.distinct),), count)
        slots[codes] = torch.arange(count)
        which = slots[self._codes]
        taken = which < count
        if 2 * int(taken.sum()) >= len(taken):
            # The other samples meet zeros, which costs less than taking the batch apart and adding the parts back in.
            return Members(names, which.to(device), None, padded=True)
        return Members(names, which[taken].to(device) if count > 1 else None, taken.nonzero()[:, 0].to(device))
