"""Linear layers with 8-bit and 4-bit weights as bitsandbytes holds and uses them, for tracing on the meta device.

Shapes, dtypes and lifetimes follow bitsandbytes 0.4x (`nn/modules.py`, `autograd/_functions.py`); no numbers are computed. Only
memory can be learned from these modules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

BLOCK_4BIT = 64  # weights to one constant (bitsandbytes' default block size for 4 bit)
BLOCK_CONSTANTS = 256  # constants to one constant of constants (double quantisation)


class Linear4bit(nn.Module):
    """NF4: two weights a byte, a constant per 64 weights, itself in 8 bit with double quantisation.

    The matrix is dequantised for each use and never kept; neither is the input.
    """

    W_q = None  # tells PEFT (`dequantize_module_weight`, of which DoRA asks W0) that this layer has `dequantize`

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, double: bool, clone_output: bool):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        count = linear.weight.numel()
        self.dtype = dtype
        self.double = double
        self.clone_output = clone_output
        blocks = -(-count // BLOCK_4BIT)
        device = linear.weight.device
        self.weight = _frozen(torch.empty((count + 1) // 2, 1, dtype=torch.uint8, device=device))
        self.register_buffer("absmax", torch.empty(blocks, dtype=torch.uint8 if double else torch.float32, device=device))
        self.register_buffer("code", torch.empty(16, device=device))
        if double:
            self.register_buffer("outer_absmax", torch.empty(-(-blocks // BLOCK_CONSTANTS), device=device))
            self.register_buffer("outer_code", torch.empty(256, device=device))
        self.bias = linear.bias

    def dequantize(self) -> torch.Tensor:
        """W0 (out x in) in the compute dtype, with the temporary copies bitsandbytes makes of its constants."""
        constants = torch.empty_like(self.absmax, dtype=torch.float32) + 0 if self.double else None
        weight = torch.empty(self.out_features, self.in_features, dtype=self.dtype, device=self.weight.device)
        del constants
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = _MatMul4bit.apply(x.to(self.dtype), self)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        out = out.to(x.dtype)
        # PEFT's LoRA and IA3 layers copy the output of a 4-bit layer before they add to it (peft/tuners/*/bnb.py).
        return out.clone() if self.clone_output else out


class _MatMul4bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return F.linear(x, layer.dequantize())

    @staticmethod
    def backward(ctx, gradient):
        return (gradient @ ctx.layer.dequantize() if ctx.needs_input_grad[0] else None), None


class Linear8bit(nn.Module):
    """LLM.int8: one byte a weight and a constant per row; the input is quantised for each use and kept for the backward pass."""

    W_q = None  # see `Linear4bit`

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        device = linear.weight.device
        self.weight = _frozen(torch.empty(linear.weight.shape, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.empty(self.out_features, dtype=torch.float32, device=device))
        self.bias = linear.bias

    def dequantize(self) -> torch.Tensor:
        """W0 (out x in) in fp32, as ``bitsandbytes.functional.int8_vectorwise_dequant`` makes it for PEFT."""
        return self.weight * self.scale.unsqueeze(1) * (1 / 127)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = _MatMul8bit.apply(x, self)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _MatMul8bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        flat = x.reshape(-1, x.shape[-1])
        half = flat.to(torch.float16)
        rounded = torch.empty_like(half, dtype=torch.int8)
        row_scale = half.new_empty(half.shape[0], dtype=torch.float32)
        product = torch.empty(flat.shape[0], layer.out_features, dtype=torch.int32, device=x.device)
        out = torch.empty_like(product, dtype=torch.float16)
        ctx.save_for_backward(x)
        ctx.scale = row_scale
        del rounded, product, half
        return out.to(x.dtype).reshape(*x.shape[:-1], layer.out_features)

    @staticmethod
    def backward(ctx, gradient):
        if not ctx.needs_input_grad[0]:
            return None, None
        (x,) = ctx.saved_tensors
        weight = ctx.layer.weight.to(x.dtype).mul_(ctx.layer.scale.unsqueeze(1).to(x.dtype))
        return gradient.to(x.dtype) @ weight, None


def quantize_base(
    model: nn.Module, bits: str, dtype: torch.dtype, *, double: bool, copies_output: bool, skip: set[str]
) -> None:
    """Replaces every linear layer of the base model in place, adapters' base layers included, except those in `skip`.

    skip: module names that bitsandbytes leaves alone (the output head). copies_output: see `Linear4bit`.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    inside: dict[str, bool] = {}  # path of a tuner layer's parts -> whether the part is the wrapped base layer
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            inside.update({f"{name}.{part}": part == "base_layer" for part, _ in module.named_modules() if part})
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or not inside.get(name, True):
            continue
        plain = name.replace(".base_layer", "")
        if any(plain == one or plain.endswith(f".{one}") for one in skip) or "modules_to_save" in name:
            continue
        parent, _, leaf = name.rpartition(".")
        wrapped = name.endswith(".base_layer")
        replacement = Linear4bit(module, dtype, double, copies_output and wrapped) if bits == "4bit" else Linear8bit(module)
        setattr(model.get_submodule(parent), leaf, replacement)


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
