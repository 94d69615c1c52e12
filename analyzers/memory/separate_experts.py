"""Experts as transformers before 5.0 had them: each a small MLP of linear layers, which bitsandbytes quantises one by one.

Since 5.0 all experts of a layer are one stacked tensor, which bitsandbytes leaves in 16 bit.
"""

from __future__ import annotations

import torch
from torch import nn


class SeparateExperts(nn.Module):
    """`count` gated MLPs; tokens are taken to spread evenly over them (`MixtralSparseMoeBlock.forward` of transformers 4.48)."""

    def __init__(self, count: int, width: int, inner: int, activation: nn.Module, like: torch.Tensor):
        super().__init__()
        self.activation = activation
        options = {"bias": False, "device": like.device, "dtype": like.dtype}
        self.experts = nn.ModuleList(
            nn.ModuleDict(
                {
                    "w1": nn.Linear(width, inner, **options),
                    "w2": nn.Linear(inner, width, **options),
                    "w3": nn.Linear(width, inner, **options),
                }
            )
            for _ in range(count)
        )

    def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """hidden: (tokens, width); top_k_index, top_k_weights: (tokens, experts of each token)."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        result = torch.zeros_like(tokens)
        share = max(1, top_k_index.numel() // len(self.experts))
        for expert in self.experts:
            chosen = torch.empty(share, dtype=torch.long, device=hidden.device)
            own = tokens[chosen]
            inner = self.activation(expert["w1"](own)) * expert["w3"](own)
            weights = top_k_weights.reshape(-1, 1)[chosen]
            result.index_add_(0, chosen, (expert["w2"](inner) * weights).to(result.dtype))
        return result.reshape(hidden.shape)


def separate_experts(model: nn.Module) -> None:
    """Replaces every stack of experts of `model` by linear layers of their own, in place."""
    for name, module in list(model.named_modules()):
        stacked, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
        if not (isinstance(stacked, nn.Parameter) and isinstance(down, nn.Parameter) and stacked.dim() == down.dim() == 3):
            continue
        count, width, inner = down.shape
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, SeparateExperts(count, width, inner, module.act_fn, down))
