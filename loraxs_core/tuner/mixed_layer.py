"""What a LoRA-XS layer does with a batch whose samples go through adapters of their own (`loraxs_core.tuner.mixed_batch`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from loraxs_core.tuner.cores import Cores
from loraxs_core.tuner.mixed_batch import Mixture


class MixedLayer:
    """The part of a layer that meets `adapter_names`, and the two products on either side of R, which the kinds of layers write.

    core_is_turned: whether R meets the input's side transposed: x A^T R^T B^T, but B[i] R A for a table.
    """

    core_is_turned = True
    base_layer: nn.Module
    training: bool
    merged: bool
    loraxs_dropout: nn.ModuleDict
    loraxs_R: Cores
    quantization_backend: Any
    r: dict[str, int]
    scaling: dict[str, float]
    basis_key: dict[str, str]

    def frozen(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def _mixed_batch(self, x: torch.Tensor, adapter_names: Mixture | list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Each sample through the adapter named for it; ``__base__`` and adapters without this module leave it alone."""
        mixture = adapter_names if isinstance(adapter_names, Mixture) else Mixture(adapter_names)
        if self.merged:
            raise ValueError("Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first.")
        if self.training and any(name in self.loraxs_dropout for name in mixture.distinct):
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        shares = mixture.shares(self, x)
        result = self.base_layer(x, *args, **kwargs)
        own = bool(shares) and self._is_own(result)
        for share in shares:
            A, B = self.frozen(share.adapter)
            inner = self._inside(x if share.rows is None else x[share.rows], A, B)
            inner = share.through(inner, self.core_is_turned)
            if share.rows is None and own:
                self._add_outside(result, inner, A, B)
                continue
            update = self._outside(inner, A, B).to(result.dtype)
            result = result + update if share.rows is None else result.index_add(0, share.rows, update)
        return result

    def _is_own(self, result: torch.Tensor) -> bool:
        """Whether what the base layer computed is nobody else's, and no gradient is wanted, so that it can be added to where it lies."""
        return not (torch.is_grad_enabled() or self.quantization_backend is not None) and result.is_contiguous()

    def _add_outside(self, result: torch.Tensor, inner: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> None:
        """Adds the update that `inner` (…, r) stands for to `result`."""
        result += self._outside(inner, A, B).to(result.dtype)

    def _inside(self, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        """The input `x` in the r-dimensional space, (…, r)."""
        raise NotImplementedError

    def _outside(self, inner: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        """The update that `inner` (…, r) stands for once R has been applied."""
        raise NotImplementedError
