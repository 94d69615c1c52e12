"""Activations that wait on the CPU for the backward pass, as TRL's ``activation_offloading`` keeps them.

Source: TRL 1.16, `models/activation_offloading.py` (`OffloadActivations` with streams, its default). The last five that were saved are
still on their way and stay; what is saved a second time meanwhile, such as the input of several layers, stays for good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SMALLEST = 1024  # bytes; what is smaller stays (`min_offload_size`)
ON_THEIR_WAY = 5  # `max_fwd_stash_size`


def offload(model: nn.Module) -> tuple[Callable, Callable]:
    """The two hooks of ``torch.autograd.graph.saved_tensors_hooks`` for one forward pass: what is saved leaves the GPU, and comes back
    when it is used. Weights stay."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    on_their_way: dict[int, torch.Tensor] = {}
    seen: dict[tuple, int] = {}  # what is on its way or stays -> the number under which it was saved last
    count = 0

    def key(tensor: torch.Tensor) -> tuple:
        return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.dtype

    def leave(tensor: torch.Tensor) -> object:
        nonlocal count
        count += 1
        name = key(tensor)
        if name in seen:
            seen[name] = count
            return tensor
        if tensor.numel() * tensor.element_size() < SMALLEST or name[0] in own:
            return tensor
        moved = tensor
        if 0 not in tensor.stride() and (not tensor.is_contiguous() or tensor.storage_offset()):
            moved = tensor.clone(memory_format=torch.contiguous_format)
        for number in [one for one in on_their_way if one <= count - ON_THEIR_WAY]:
            del on_their_way[number]
            for other in [one for one, last in seen.items() if last == number]:
                del seen[other]
        on_their_way[count] = moved
        seen[name] = count
        return count, tensor.shape, tensor.stride(), tensor.dtype

    def return_(kept: Any) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        number, shape, stride, dtype = kept
        waiting = on_their_way.pop(number, None)
        if waiting is not None and waiting.stride() == stride:
            return waiting
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")

    return leave, return_
