"""What rank of LoRA-XS costs as much as another method: in bytes of the file, and in trained numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analyzers.storage.size import AdapterSize, adapter_size
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.targets import select_targets


@dataclass(frozen=True)
class BreakEven:
    """against: the size of the other method. rank_by_bytes, rank_by_trainable: the largest uniform rank of LoRA-XS whose file, or
    whose trained numbers, are no more than that; 0 when even rank 1 is more. full_rank: the largest rank its matrices allow; a
    break-even rank equal to it means that LoRA-XS never costs as much. size: of LoRA-XS at `rank_by_bytes`; None at rank 0."""

    against: AdapterSize
    rank_by_bytes: int
    rank_by_trainable: int
    full_rank: int
    size: AdapterSize | None

    @property
    def sentence(self) -> str:
        """The answer in words."""
        other = f"{self.against.label} of rank {self.against.rank_text}" if self.against.ranks else self.against.label
        if self.rank_by_bytes == 0:
            return f"LoRA-XS is larger on disk than {other} ({self.against.file_bytes:,} bytes) even at rank 1."
        if self.rank_by_bytes == self.full_rank:
            return f"LoRA-XS is smaller on disk than {other} ({self.against.file_bytes:,} bytes) at every rank, {self.full_rank} included."
        return (
            f"LoRA-XS stays within the {self.against.file_bytes:,} bytes of {other} up to rank {self.rank_by_bytes}, and "
            f"{self._by_trainable} its {self.against.trainable:,} trained numbers."
        )

    @property
    def _by_trainable(self) -> str:
        if self.rank_by_trainable == 0:
            return "even at rank 1 trains more than"
        return (
            "at every rank within"
            if self.rank_by_trainable == self.full_rank
            else f"up to rank {self.rank_by_trainable} within"
        )


def break_even(checkpoint: Checkpoint, method: str = "lora", *, rank: int | None = None, **settings: Any) -> BreakEven:
    """The rank at which LoRA-XS on the same layers costs what `method` at `rank` does.

    settings: as for `adapter_size` (targets, dtype, task, modules_to_save); `options` are those of `method`.
    """
    against = adapter_size(checkpoint, method, rank=rank, **settings)
    own = {key: value for key, value in settings.items() if key != "options"}
    weights = select_targets(checkpoint, own.get("targets", "paper"))
    full_rank = min(weight.full_rank for weight in weights)

    def xs(rank: int) -> AdapterSize:
        return adapter_size(checkpoint, "lora-xs", rank=rank, **own)

    by_bytes = _largest(full_rank, lambda rank: xs(rank).file_bytes <= against.file_bytes)
    by_trainable = _largest(full_rank, lambda rank: len(weights) * rank**2 <= against.trainable)
    return BreakEven(against, by_bytes, by_trainable, full_rank, xs(by_bytes) if by_bytes else None)


def _largest(top: int, fits: Callable[[int], bool]) -> int:
    """The largest whole number in 0..top that fits, where everything below one that fits does too."""
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
