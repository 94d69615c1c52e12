"""What comes out of a store: an adapter, and what the whole takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from loraxs_core.store.plans import Plan
from loraxs_core.store.records import Version

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter out of a store, its checksum found right. row: all of its own numbers. shared: what it has in common, by checksum."""

    version: Version
    plan: Plan
    row: bytearray
    shared: dict[str, bytes]

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What its adapter_model.safetensors holds, proof included."""
        return self.plan.tensors(self.row, self.shared)

    @cached_property
    def cores(self) -> dict[str, torch.Tensor]:
        """Module name -> R (r x r), as it is stored."""
        numbers = self.plan.numbers(self.row)
        return {part.module: numbers[part.key] for part in self.plan.parts if part.module is not None}


@dataclass(frozen=True)
class Space:
    """What a store takes. adapters, versions: how many names and rows. numbers: bytes of the rows. file: bytes on the disk."""

    adapters: int
    versions: int
    plans: int
    numbers: int
    file: int
    free: int

    @property
    def overhead(self) -> float:
        """Bytes on the disk beyond the numbers, as a share of them; pages that the next puts will fill are not counted."""
        return (self.file - self.free - self.numbers) / self.numbers if self.numbers else 0.0
