"""The trained matrices of one layer, R of every adapter: what wrappers gather, shard and count as one module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from loraxs_core.errors import AdapterError


class Cores(nn.ParameterDict):
    """R (r x r) by adapter name. Its names in a state dict are those of a ParameterDict: ``loraxs_R.<adapter>``.

    A module with a forward of its own, because FSDP gathers the shares of a parameter for the time of the forward of the module that has
    it. Whoever computes with R calls it; what it gives is a new tensor, since the parameters themselves are given back after the call.
    """

    @property
    def weight(self) -> nn.Parameter | None:
        """An R that is trained, None where none is: PEFT's ``fsdp_auto_wrap_policy`` puts a module without children whose `weight` wants a
        gradient into a unit of its own, apart from the frozen rest of the model."""
        return next((R for R in self._parameters.values() if R is not None and R.requires_grad), None)

    __call__ = nn.Module.__call__  # a ParameterDict refuses

    def forward(self, scaling: Mapping[str, float], rank: int | None = None) -> torch.Tensor:
        """``scaling * R`` of the adapter that `scaling` names, [r, r]; with `rank` of all that it names, [adapters, rank, rank], smaller
        ones padded with zeros."""
        if rank is None:
            ((name, scale),) = scaling.items()
            return self[name] * scale
        held = self._parameters  # a tenth of the time that asking for the items a thousand times takes
        found: list[torch.Tensor] = [one if (one := held.get(name)) is not None else self[name] for name in scaling]
        dtypes = {one.dtype for one in found}
        if len(dtypes) > 1:
            found = [one.to(torch.promote_types(*dtypes) if len(dtypes) == 2 else torch.float32) for one in found]
        found = [F.pad(one, (0, rank - len(one), 0, rank - len(one))) if len(one) < rank else one for one in found]
        cores, scales = torch.stack(found), list(scaling.values())
        if scales.count(scales[0]) == len(scales):
            return cores if scales[0] == 1 else cores * scales[0]
        return cores * torch.tensor(scales, dtype=cores.dtype, device=cores.device)[:, None, None]


_HOLDERS = Cores(), nn.ModuleDict(), BufferDict({})


def refuse_name(adapter_name: str) -> None:
    """Raises AdapterError for a name that PyTorch cannot keep parameters under."""
    if not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name:
        raise AdapterError(f"An adapter's name must be text without dots, not {adapter_name!r}; choose another one.")
    if any(hasattr(holder, adapter_name) for holder in _HOLDERS):
        raise AdapterError(f"PyTorch keeps the name {adapter_name!r} for itself in what holds an adapter; choose another one.")
