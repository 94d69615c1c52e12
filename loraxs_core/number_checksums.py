"""CRC-32 of an adapter's trained numbers, as its proof (`loraxs_core.proof`) holds them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def core_checksum(core: torch.Tensor, name: str = "") -> int:
    """Of one module's R as it is stored. name: of the module, in the first layout of the proof."""
    import torch

    numbers = core.detach().cpu().contiguous().view(torch.uint8).numpy()
    return zlib.crc32(numbers, zlib.crc32(f"{name} {tuple(core.shape)} {core.dtype}".encode()))


def pair_checksum(A: torch.Tensor, B: torch.Tensor) -> int:
    """Of one module's saved A and B: of their numbers, whether they are held in the precision they were saved in or in a wider one."""
    import torch

    total = 0
    for one in (A, B):
        numbers = one.detach().cpu()
        numbers = (numbers if numbers.dtype == torch.float64 else numbers.to(torch.float32)).contiguous()
        total = zlib.crc32(numbers.view(torch.uint8).numpy(), zlib.crc32(f"{tuple(one.shape)}".encode(), total))
    return total


def head_checksum(tensors: Mapping[str, torch.Tensor], *, named: bool = False) -> int:
    """Of modules saved whole, whatever precision they are held in and whatever their names are (except for their order); 0 when there
    are none. named: as in the first layout of the proof."""
    import torch

    total = 0
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32((name if named else str(tuple(tensor.shape))).encode(), total)
        total = zlib.crc32(whole(tensor.detach()).cpu().to(torch.float32).contiguous().numpy(), total)
    return total


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which processes hold shares (FSDP2); any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
