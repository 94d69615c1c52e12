"""Activations that wait on the CPU for the backward pass, as TRL's ``activation_offloading`` and torchtune's keep them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SMALLEST = 1024  # numbers; what is smaller stays (`min_offload_size` of TRL's OffloadActivations)


def offload(model: nn.Module) -> tuple[Callable, Callable]:
    """The two hooks of ``torch.autograd.graph.saved_tensors_hooks``: what is saved leaves the GPU, and comes back when it is used.
    Weights stay. Copies that are still on their way are not counted."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def leave(tensor: torch.Tensor) -> object:
        if tensor.numel() < SMALLEST or tensor.untyped_storage()._cdata in own:
            return tensor
        return tensor.shape, tensor.stride(), tensor.dtype

    def return_(kept: Any) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        shape, stride, dtype = kept
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")

    return leave, return_
