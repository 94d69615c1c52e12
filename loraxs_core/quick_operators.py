"""A training step on a CPU with quicker operators than PyTorch's own: dropout and attention with dropout everywhere, linear layers where MKL is slow.

PyTorch draws a number of 32 bits for every number that dropout may leave out, one after the other, which takes longer than the layer
around it. `quick_dropout` draws 16 bits: the chance is a whole number of 65,536ths (0.100006 for 0.1), and what stays is scaled by that
chance exactly. The numbers come from PyTorch's own generator, so that its state resumes a training as ever.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from loraxs_core.linear_products import is_plain, mkl_is_slow, through_onednn

_PARTS = 2**16
_NEAR = 1e-3  # how far the chance may be from the one that was asked for, relative to it


@contextlib.contextmanager
def quick_operators() -> Iterator[None]:
    """Inside the block, this thread's float32 operators on the CPU take the quicker way, whatever module asks for them."""
    with _Quick():
        yield


class _Quick(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.instead: dict[Callable[..., Any], Callable[..., Any]] = {
            F.dropout: _dropout,
            F.scaled_dot_product_attention: _attention,
        }
        if mkl_is_slow():
            self.instead[F.linear] = through_onednn

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        instead = self.instead.get(func)
        return (instead or func)(*args, **(kwargs or {}))


def quick_dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """`x` with each number left out with a chance of `p` and the others scaled up, as ``F.dropout``. x: float32 on the CPU."""
    return x * _kept(x.shape, p)


def _kept(shape: torch.Size, p: float) -> torch.Tensor:
    """Of this shape, 0 with a chance of `p`, and what makes the mean 1 otherwise."""
    numbers, dropped = math.prod(shape), round(p * _PARTS)
    bits = torch.empty(-(-numbers // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:numbers]
    kept = torch.empty(numbers)
    torch.lt(bits, _PARTS // 2 - dropped, out=kept)
    return kept.mul_(_PARTS / (_PARTS - dropped)).view(shape)


def _is_fine(x: torch.Tensor, p: float) -> bool:
    return 0 < p < 1 and abs(round(p * _PARTS) / _PARTS - p) <= _NEAR * p and is_plain(x)


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if training and not inplace and _is_fine(input, p):
        return quick_dropout(input, p)
    return F.dropout(input, p, training, inplace)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **more: Any,
) -> torch.Tensor:
    """PyTorch's own has a quick way on a CPU, but not with dropout."""
    if is_causal or not _is_fine(query, dropout_p) or not _is_attention(query, key, value, attn_mask) or more.get("enable_gqa"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **more)
    batch, heads, length, width = query.shape
    scale = more.get("scale")
    scores = torch.baddbmm(
        query.new_empty(1),  # times 0
        query.reshape(-1, length, width),
        key.reshape(-1, *key.shape[2:]).transpose(1, 2),
        beta=0,
        alpha=1 / math.sqrt(width) if scale is None else scale,
    ).view(batch, heads, length, -1)
    if attn_mask is not None:
        scores = scores + torch.zeros(attn_mask.shape).masked_fill_(~attn_mask, torch.finfo(torch.float32).min)
    weights = quick_dropout(F.softmax(scores, dim=-1), dropout_p)
    found = torch.bmm(weights.view(-1, *weights.shape[2:]), value.reshape(-1, *value.shape[2:]))
    return found.view(batch, heads, length, -1)


def _is_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether there are as many heads of each, and the mask, if any, says yes or no and lets every word see at least one."""
    if query.dim() != 4 or not query.shape[:2] == key.shape[:2] == value.shape[:2] or not (is_plain(key) and is_plain(value)):
        return False
    if mask is None:
        return True
    return mask.dtype is torch.bool and mask.dim() == 4 and bool(mask.any(-1).all())
