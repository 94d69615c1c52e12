"""Linear layers on a processor of AMD's with AVX-512, where MKL's single-precision products run at half the speed of oneDNN's or less.

PyTorch ships both libraries and gives float32 products to MKL. Inside `quick_operators.quick_operators` those of
``torch.nn.functional.linear``, forward and backward, go to oneDNN, whatever module asks for them. The two round alike and not to the same
bit. ``python -m benchmarks.linear_products`` prints the speed of both.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

_ROWS = 256  # from how many on oneDNN's product with a matrix of 16 rows is the quicker one


@lru_cache(maxsize=1)
def mkl_is_slow() -> bool:
    """Whether MKL takes its slower code on this processor, and oneDNN is there instead."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "AuthenticAMD" in processor and torch.backends.cpu.get_cpu_capability() == "AVX512"


def quick_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x W^T`` by the quicker library, for x (…, in) and W (out, in), without a gradient. A few rows are left to PyTorch's own way, whose
    call costs less."""
    if x.numel() >= _ROWS * weight.shape[-1] and mkl_is_slow() and is_plain(x) and is_plain(weight):
        return _product(x.contiguous(), weight)
    return F.linear(x, weight)


def through_onednn(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``F.linear`` by oneDNN, with its gradient, where oneDNN takes it."""
    if is_plain(input) and is_plain(weight):
        # Rows go in and come out: what a Function of one's own gives as a view may not be written into, which AdaLoRA does.
        rows = _Linear.apply(input.reshape(-1, input.shape[-1]), weight, bias)
        return rows if input.dim() == 2 else rows.view(*input.shape[:-1], len(weight))
    return F.linear(input, weight, bias)


def is_plain(value: torch.Tensor) -> bool:
    """Whether the quicker ways take it: float32 numbers on a CPU, at least one, in no tensor class of somebody's own."""
    plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided and value.device.type == "cpu"
    return plain and value.dtype is torch.float32 and value.numel() > 0 and not torch.is_autocast_enabled("cpu")


class _Linear(torch.autograd.Function):
    """``x W^T + b`` for x (…, in), W (out, in), b (out)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return _product(x.contiguous(), weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            _product(gradient, weight.t()) if for_x else None,
            _product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(…, k) by (n, k) -> (…, n)."""
    return torch.ops.mkldnn._linear_pointwise(x, _dense(weight), bias, "none", [], "")


def _dense(weight: torch.Tensor) -> torch.Tensor:
    """`weight` without gaps between its rows or columns: of a slice, such as VeRA's of its shared projections, oneDNN takes code that is a
    thousand times slower."""
    return weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()
