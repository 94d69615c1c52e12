"""The layers that LoRA-XS adapts: linear ones of every kind, and embedding tables."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from loraxs_core.linear_products import quick_linear
from loraxs_core.tuner.config import LoraXSConfig
from loraxs_core.tuner.layer import LoraXSLayer


class Linear(LoraXSLayer):
    """LoRA-XS on nn.Linear, transformers' Conv1D, and their quantised kin."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, name: str, *, config: LoraXSConfig, fan_in_fan_out: bool, **kwargs: Any
    ) -> None:
        super().__init__(base_layer, name, **kwargs)
        self.fan_in_fan_out = fan_in_fan_out
        self._active_adapter = [adapter_name]
        self.update_layer(adapter_name, config=config)

    def _inside(self, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        x = self._cast_input_dtype(x, A.dtype)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return F.linear(x, A)
        return quick_linear(x, A)

    def _outside(self, inner: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        return F.linear(inner.to(B.dtype), B)

    def _add_outside(self, result: torch.Tensor, inner: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> None:
        if result.dtype == B.dtype:  # in one pass, without a second tensor of this size, which costs more than the product
            result.view(-1, len(B)).addmm_(inner.to(B.dtype).reshape(-1, B.shape[1]), B.T)
        else:
            super()._add_outside(result, inner, A, B)

    def __repr__(self) -> str:
        return "loraxs." + super().__repr__()


class Embedding(LoraXSLayer):
    """LoRA-XS on nn.Embedding: row i of the table gets ``scaling * B[i] R A``."""

    core_is_turned = False

    def __init__(self, base_layer: nn.Module, adapter_name: str, name: str, *, config: LoraXSConfig, **kwargs: Any) -> None:
        super().__init__(base_layer, name, **kwargs)
        # PEFT calls the number of rows in_features; here the table is W0 (out x in) as it is stored.
        self.in_features, self.out_features = self.out_features, self.in_features
        self._active_adapter = [adapter_name]
        self.update_layer(adapter_name, config=config)

    def _inside(self, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        return F.embedding(x, B)

    def _outside(self, inner: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        update = inner.to(A.dtype) @ A
        scale = self._get_embed_scale()
        return update if scale is None else update * scale.to(update.dtype)

    def __repr__(self) -> str:
        return "loraxs." + super().__repr__()
