"""Optimizers for a traced step: PyTorch's and transformers' own where they run on the meta device, their memory where not."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from analyzers.optimizers import BLOCK_8BIT, MIN_8BIT


def make_optimizer(name: str, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer called `name` (a key of `analyzers.optimizers.OPTIMIZERS`) over the trained parameters."""
    parameters = list(parameters)
    if name == "adamw":
        return torch.optim.AdamW(parameters, foreach=True)
    if name == "adamw-loop":
        return torch.optim.AdamW(parameters, foreach=False)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1e-3, foreach=True)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        # As transformers.Trainer sets it for optim="adafactor".
        return Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False)
    if name == "adamw-fused":
        return FusedAdamW(parameters, {})
    return AdamW8bit(parameters, {})


class FusedAdamW(torch.optim.Optimizer):
    """AdamW in one kernel (``torch.optim.AdamW(fused=True)``): states like the parameters and a step counter each, no temporaries."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter] = {
                        "step": parameter.new_zeros((), dtype=torch.float32),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


class AdamW8bit(torch.optim.Optimizer):
    """bitsandbytes' AdamW8bit (`optim/optimizer.py`): two one-byte states and a constant per 256 values each, updated in place.

    Tensors below 4096 values keep fp32 states.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or self.state[parameter]:
                    continue
                if parameter.numel() < MIN_8BIT:
                    state = {name: torch.zeros_like(parameter, dtype=torch.float32) for name in ("state1", "state2")}
                else:
                    blocks = -(-parameter.numel() // BLOCK_8BIT)
                    state = {name: torch.zeros_like(parameter, dtype=torch.uint8) for name in ("state1", "state2")}
                    state |= {name: parameter.new_zeros(blocks, dtype=torch.float32) for name in ("absmax1", "absmax2")}
                self.state[parameter] = state
