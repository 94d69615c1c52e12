"""Many adapters in one batch: every sample through its own R, one product a module.

Adapters of one weight share A and B, so that only R differs from sample to sample: ``x_i A^T`` is one product for the whole batch, then
every sample meets its own R in one ``bmm``, then one product with B^T. The R of the adapters in the batch are stacked once for a call of
forward or generate (`Mixture`) as ``[adapters, r, r]`` and gathered by row. Smaller ranks are padded with zeros: the first rows of A are
the smaller basis.
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
    samples have the same. which: index into `cores` of every sample (of `rows`), `EACH` where that is its own, None with one R. rows: the samples' indices, None for
    the whole batch.
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

    def shares(self, layer: Carrier, x: torch.Tensor) -> list[Share]:
        """What `layer` has to add, once for all samples with the same bases; samples without an adapter there are in none."""
        if len(x) != len(self.names):
            raise ValueError(
                f"Length of `adapter_names` should be the same as the number of inputs, but got {len(self.names)} and "
                f"{len(x)} respectively."
            )
        if id(layer) not in self._shares:
            self._shares[id(layer)] = self._divide(layer, x.device)
        return self._shares[id(layer)]

    def _divide(self, layer: Carrier, device: torch.device) -> list[Share]:
        groups: dict[str, list[int]] = {}  # basis -> codes of its adapters
        for code, name in enumerate(self.distinct):
            if name in layer.basis_key:
                groups.setdefault(layer.basis_key[name], []).append(code)
        return [self._share(layer, members, device) for members in groups.values()]

    def _share(self, layer: Carrier, members: list[int], device: torch.device) -> Share:
        names = [self.distinct[code] for code in members]
        largest = max(names, key=layer.r.__getitem__)
        cores = layer.loraxs_R({name: layer.scaling[name] for name in names}, layer.r[largest])
        if len(members) == len(self.distinct):
            return Share(largest, *self._all(cores, device))
        slots = torch.full((len(self.distinct),), len(members))
        slots[members] = torch.arange(len(members))
        which = slots[self._codes]
        taken = which < len(members)
        if 2 * int(taken.sum()) >= len(taken):
            # The other samples meet zeros, which costs less than taking the batch apart and adding the parts back in.
            return Share(largest, torch.cat([cores, torch.zeros_like(cores[:1])]), which.to(device), None)
        rows = taken.nonzero()[:, 0].to(device)
        return (
            Share(largest, cores, which[taken].to(device), rows) if len(members) > 1 else Share(largest, cores[0], None, rows)
        )

    def _all(self, cores: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        if len(cores) == 1:
            return cores[0], None, None
        return cores, EACH if len(cores) == len(self.names) else self._codes.to(device), None
