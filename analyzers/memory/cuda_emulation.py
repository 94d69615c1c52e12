"""Makes a step on the meta device choose what it would choose on a CUDA GPU.

A `TorchFunctionMode` stands between the model's Python and PyTorch and answers four questions the meta device answers
differently: which attention kernel runs, how dropout keeps its mask, what automatic mixed precision casts, and what a model
learns when it looks at the values of its padding mask. Everything else is PyTorch's own code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from analyzers.memory.kernels import FLASH_MAX_HEAD

aten = torch.ops.aten

# torch.autocast's op lists for CUDA (aten/src/ATen/autocast_mode.h), by the names these ops have in Python.
LOWER_PRECISION = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "addmv", "baddbmm", "addbmm", "chain_matmul",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "prelu", "einsum",
    "scaled_dot_product_attention",
}  # fmt: skip
FULL_PRECISION = {
    "softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm", "cross_entropy", "nll_loss", "binary_cross_entropy_with_logits",
    "mse_loss", "l1_loss", "smooth_l1_loss", "kl_div", "cosine_similarity", "cosine_embedding_loss", "exp", "expm1", "log", "log10",
    "log2", "log1p", "pow", "__pow__", "__rpow__", "rsqrt", "reciprocal", "softplus", "norm", "prod", "cumprod", "cumsum", "sum",
    "dist", "cdist", "renorm", "logsumexp", "acos", "asin", "cosh", "sinh", "tan", "erfinv",
}  # fmt: skip


class CudaEmulation(TorchFunctionMode):
    """The mode. Enter it around a training step on the meta device.

    padding: whether some sequences of the batch are padded. autocast: the dtype of automatic mixed precision, None without.
    softmax_keeps_input, expanded_keys: see `versions.Software`. on_cast: told of every weight's copy in the low precision.
    """

    def __init__(
        self,
        *,
        padding: bool,
        autocast: torch.dtype | None = None,
        softmax_keeps_input: bool = False,
        expanded_keys: bool = False,
    ):
        super().__init__()
        self.padding = padding
        self.autocast = autocast
        self.softmax_keeps_input = softmax_keeps_input
        self.expanded_keys = expanded_keys
        self.on_cast: Callable[[torch.Tensor], None] = lambda copy: None
        self._casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def leave_autocast(self) -> None:
        """Drops the cached low-precision copies of weights, as leaving ``torch.autocast`` does."""
        self._casts.clear()

    def checkpoint_contexts(self) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        """What a checkpointed layer runs and is recomputed in (``context_fn`` of ``torch.utils.checkpoint``). A recomputation enters
        autocast afresh, where none is active any more, so that leaving it drops the copies it made."""
        return contextlib.nullcontext(), self._recomputing()

    @contextlib.contextmanager
    def _recomputing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.leave_autocast()

    @contextlib.contextmanager
    def taking_autocast(self) -> Iterator[None]:
        """Answers ``torch.autocast("meta", …)``, which PyTorch refuses: PEFT leaves autocast for a product (LoRA on stacked experts)
        by naming the device of its tensors."""
        original = torch.autocast

        def autocast(device_type, *args: Any, **kwargs: Any):
            return self._without_autocast() if device_type == "meta" else original(device_type, *args, **kwargs)

        torch.autocast = autocast
        try:
            yield
        finally:
            torch.autocast = original

    @contextlib.contextmanager
    def _without_autocast(self) -> Iterator[None]:
        before, self.autocast = self.autocast, None
        try:
            yield
        finally:
            self.autocast = before

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.autocast is not None:
            args, kwargs = self._cast_arguments(name, args, kwargs)
        if name == "scaled_dot_product_attention":
            return _attention(*args, **kwargs, expand=self.expanded_keys)
        if name == "dropout" and func in (F.dropout, torch.dropout):
            return _dropout(*args, **kwargs)
        if name == "__bool__" and args[0].is_meta:
            return self._truth(args[0])
        if name == "__contains__" and args[0].is_meta:
            return False  # transformers asks whether there is padding without a mask, only to warn
        if name == "softmax" and self.softmax_keeps_input:
            return _softmax(func, *args, **kwargs)
        result = func(*args, **kwargs)
        if name == "any" and isinstance(result, torch.Tensor) and result.is_meta:
            result.asks_for_any = True
        return result

    def _truth(self, tensor: torch.Tensor) -> bool:
        """A model asks whether all of something holds only of masks ("are all tokens real?", "is nothing packed?"), and whether
        any holds only of accidents (infinite values)."""
        return False if getattr(tensor, "asks_for_any", False) else not self.padding

    def _cast_arguments(self, name: str, args, kwargs):
        if name in LOWER_PRECISION:
            cast = self._lower
        elif name in FULL_PRECISION and not (kwargs.get("dtype") is not None):
            cast = _to_full
        else:
            return args, kwargs
        return _mapped(cast, args), {key: _mapped(cast, value) for key, value in kwargs.items()}

    def _lower(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` in the low precision; weights are cast once and kept until the forward pass ends."""
        if not tensor.is_floating_point() or tensor.dtype in (self.autocast, torch.float64):
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float32) or tensor._is_view():
            return tensor.to(self.autocast)
        if id(tensor) not in self._casts:
            self._casts[id(tensor)] = (tensor, tensor.to(self.autocast))
            self.on_cast(self._casts[id(tensor)][1])
        return self._casts[id(tensor)][1]


def _to_full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _mapped(cast, value):
    if isinstance(value, torch.Tensor):
        return cast(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(cast, one) for one in value)
    return value


def _dropout(input, p=0.5, training=True, inplace=False):
    if not training or p == 0:
        return input
    return torch.native_dropout(input, p, training)[0]


def _attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False, expand=False
):
    """``F.scaled_dot_product_attention`` as CUDA dispatches it (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).

    Flash attention without a mask in 16 bit, memory-efficient attention otherwise; PyTorch's own math where neither applies.
    expand: the caller repeats keys and values of grouped heads first.
    """
    head = query.shape[-1]
    half = query.dtype in (torch.float16, torch.bfloat16)
    same_heads = key.shape[1] == query.shape[1] if query.dim() == 4 else True
    if expand and not same_heads:
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
        same_heads = True
    if query.dim() != 4 or not key.dtype == value.dtype == query.dtype:
        return _math(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if attn_mask is None and half and head <= FLASH_MAX_HEAD and value.shape[-1] == head and (same_heads or enable_gqa):
        scale = scale if scale is not None else head**-0.5
        padded = [_pad_last(tensor, 8) for tensor in (query, key, value)]
        out = aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=scale)[0]
        return out[..., :head] if out.shape[-1] != head else out
    if not same_heads:
        return _math(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    bias = None if attn_mask is None else _bias(attn_mask, query, key)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(query, key, value, bias, keep, dropout_p, is_causal, scale=scale)[0]


def _bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The mask as the kernel wants it: additive, in the query's dtype, rows aligned to 16 (``preprocess_mask``)."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    elif mask.dtype != query.dtype:
        mask = mask.to(query.dtype)
    columns = mask.shape[-1]
    if columns % 16:
        mask = F.pad(mask, (0, 16 - columns % 16))[..., :columns]
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _pad_last(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    short = -tensor.shape[-1] % multiple
    return F.pad(tensor, (0, short)) if short else tensor


def _math(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa):
    if enable_gqa and key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return aten._scaled_dot_product_attention_math(query, key, value, mask, dropout_p, is_causal, None, scale=scale)[0]


class _SoftmaxKeepingInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, dim):
        probabilities = torch.softmax(scores, dim)
        ctx.save_for_backward(scores, probabilities)
        ctx.dim = dim
        return probabilities

    @staticmethod
    def backward(ctx, gradient):
        scores, probabilities = ctx.saved_tensors
        return aten._softmax_backward_data(gradient, probabilities, ctx.dim, scores.dtype), None


def _softmax(func, input, dim=None, *args: Any, dtype=None, **kwargs: Any):
    scores = input if dtype is None else input.to(dtype)
    return _SoftmaxKeepingInput.apply(scores, dim)
