"""Optimizers for a traced step: PyTorch's and transformers' own where they run on the meta device, their memory where not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from analyzers.optimizers import BLOCK_8BIT, MIN_8BIT


def make_optimizer(name: str, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer called `name` (a key of `analyzers.optimizers.OPTIMIZERS`) over the trained parameters."""
    return _MAKERS[name](list(parameters))


def _adafactor(parameters: list) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    # As transformers.Trainer sets it for optim="adafactor".
    return Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False)


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


class Blockwise(torch.optim.Optimizer):
    """bitsandbytes' optimizers (`optim/optimizer.py`): states updated in place by one kernel a parameter.

    states: how many a parameter has. bits: 8 for one byte a number and a constant per 256 of them, 32 for fp32; tensors below 4096
    numbers always have fp32 states. paged: states lie in unified memory, outside of PyTorch's allocator; the driver moves them to
    the CPU when the GPU is full, so they are counted as none. Small ones are never paged.
    """

    def __init__(self, parameters: list, *, states: int, bits: int, paged: bool = False):
        super().__init__(parameters, {})
        self.states, self.bits, self.paged = states, bits, paged

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter] = {"step": 0, **self._of(parameter)}

    def _of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        names = [f"state{index + 1}" for index in range(self.states)]
        paged = self.paged and parameter.numel() >= PAGED_FROM
        if self.bits == 32 or parameter.numel() < MIN_8BIT:
            return {} if paged else {name: torch.zeros_like(parameter, dtype=torch.float32) for name in names}
        blocks = -(-parameter.numel() // BLOCK_8BIT)
        codes = {} if paged else {name: torch.zeros_like(parameter, dtype=torch.uint8) for name in names}
        constants = {f"absmax{name}": parameter.new_zeros(blocks, dtype=torch.float32) for name in names}
        return codes | constants


PAGED_FROM = 100_000  # numbers (`get_state_buffer`)

_MAKERS: dict[str, Callable[[list], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, foreach=True),
    "adamw-loop": lambda parameters: torch.optim.AdamW(parameters, foreach=False),
    "adamw-fused": lambda parameters: FusedAdamW(parameters, {}),
    "adamw-8bit": lambda parameters: Blockwise(parameters, states=2, bits=8),
    "paged-adamw": lambda parameters: Blockwise(parameters, states=2, bits=32, paged=True),
    "paged-adamw-8bit": lambda parameters: Blockwise(parameters, states=2, bits=8, paged=True),
    "lion": lambda parameters: Blockwise(parameters, states=1, bits=32),
    "lion-8bit": lambda parameters: Blockwise(parameters, states=1, bits=8),
    "ademamix": lambda parameters: Blockwise(parameters, states=3, bits=32),
    "ademamix-8bit": lambda parameters: Blockwise(parameters, states=3, bits=8),
    "adafactor": _adafactor,
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, foreach=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, foreach=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, foreach=True),
}
