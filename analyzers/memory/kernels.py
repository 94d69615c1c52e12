"""Memory that CUDA kernels take for themselves while they run, which the meta device does not show, and what only CUDA computes.

Each workspace is a function of an operator's arguments that returns the sizes in bytes of blocks that live during the call.
Sources are the kernels' own host code in PyTorch: `aten/src/ATen/native/transformers/cuda/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

FLASH_MAX_HEAD = 256  # flash attention has no kernel for wider heads
FP32 = 4


def workspace_bytes(func, args: tuple, kwargs: dict) -> list[int]:
    """Sizes in bytes of the blocks that the CUDA kernel of `func` takes while it runs; empty for most operators."""
    rule = WORKSPACES.get(func)
    return rule(*args, **kwargs) if rule else []


def _round(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _flash_backward(grad_out, query, key, value, *_args: Any, **_kwargs: Any) -> list[int]:
    # mha_bwd in flash_attn/flash_api.cpp: softmax_d and dq_accum in fp32 over rounded lengths and head sizes; with fewer key
    # heads than query heads, gradients of the keys and values expanded to all query heads.
    batch, heads, length, head = query.shape
    rounded_length = _round(length, 128)
    rounded_head = _round(head, 32) if head <= 128 else _round(head, 64)
    sizes = [
        batch * heads * rounded_length * FP32,
        batch * rounded_length * heads * rounded_head * FP32,
    ]
    if key.shape[1] != heads:
        expanded = batch * key.shape[2] * heads * head * key.element_size()
        sizes += [expanded, expanded]
    return sizes


def _efficient_forward(query, key, value, bias, *_args: Any, **_kwargs: Any) -> list[int]:
    # kernel_forward.h: for heads wider than 128 the output accumulates in fp32 in global memory unless it is fp32 already.
    batch, heads, length, _ = query.shape
    if value.shape[-1] <= 128 or query.dtype == torch.float32:
        return []
    return [batch * length * heads * value.shape[-1] * FP32]


def _efficient_backward(grad_out, query, key, value, bias, out, *_args: Any, **_kwargs: Any) -> list[int]:
    # attention_backward.cu: delta is (batch, heads, queries) in fp32; kernel_backward.h: in 16 bit the gradient of the query
    # accumulates in an fp32 workspace over blocks of 64 queries, those of key and value too where they do not fit registers.
    batch, heads, queries, head = query.shape
    sizes = [batch * heads * queries * FP32]
    if query.dtype != torch.float32:
        accumulated = _round(queries, 64) * _round(head, 64)
        if head > 128:
            accumulated += 2 * _round(key.shape[2], 64) * _round(head, 64)
        sizes.append(batch * heads * accumulated * FP32)
    return sizes


def embedding_sorts(tokens: int) -> bool:
    """Whether an embedding's backward pass sorts its tokens; few are added up one by one."""
    return tokens > 3072


def _embedding_backward(grad, indices, *_args: Any, **_kwargs: Any) -> list[int]:
    # embedding_dense_backward_cuda sorts the indices: sorted copies and their original positions, plus the sort's own buffers.
    return [indices.numel() * 8] * 4 if embedding_sorts(indices.numel()) else []


def _grouped_mm(mat_a, mat_b, offs=None, bias=None, out_dtype=None) -> torch.Tensor:
    # CUDA multiplies experts in any dtype (_grouped_mm_cuda in cuda/GroupedBlas.cpp), one after another where it is not bf16 into
    # an output that is there before; PyTorch's meta registration knows bf16 alone.
    half = aten._grouped_mm.default(mat_a.to(torch.bfloat16), mat_b.to(torch.bfloat16), offs)
    return torch.empty_strided(half.shape, half.stride(), dtype=out_dtype or mat_a.dtype, device=half.device)


def stand_in(func, args: tuple) -> Callable | None:
    """What to call instead of an operator that CUDA runs and the meta device refuses; None for all others."""
    return _grouped_mm if func is aten._grouped_mm.default and args[0].dtype != torch.bfloat16 else None


WORKSPACES: dict[object, Callable[..., list[int]]] = {
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_efficient_attention.default: _efficient_forward,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten.embedding_dense_backward.default: _embedding_backward,
}
