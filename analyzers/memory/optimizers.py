"""Optimizers for a traced step: PyTorch's and transformers' own where they run on the meta device, their memory where not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from analyzers.memory import low_rank_optimizers as low_rank
from analyzers.memory import other_optimizers as other
from analyzers.memory.optimizer_rules import deciding_arguments, parse_arguments, projected_rank
from analyzers.optimizers import BLOCK_8BIT, IN_BACKWARD, LOW_RANK, MIN_8BIT
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    from analyzers.memory.settings import MemorySettings


def make_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter], arguments: Mapping[str, str] | None = None
) -> torch.optim.Optimizer:
    """The optimizer called `name` (a key of `analyzers.optimizers.OPTIMIZERS`) over the trained parameters.

    arguments: of ``TrainingArguments.optim_args`` (see `parse_arguments`).
    """
    return _MAKERS[name](list(parameters), **deciding_arguments(name, arguments or {}))


def optimizer_of(settings: MemorySettings, model: nn.Module) -> torch.optim.Optimizer | other.Layerwise:
    """The optimizer of `settings` as transformers' Trainer makes it for `model`. Raises SettingsError when its targets match nothing."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    name, arguments = settings.optimizer, parse_arguments(settings.optim_args)
    if name in LOW_RANK:
        rank = projected_rank(settings.optim_args)
        groups = low_rank.param_groups(trained, _projected(model, settings.optim_target_modules), rank)
        make = _LOW_RANK[name.removesuffix("-layerwise")]
        return other.Layerwise(groups, make) if name in IN_BACKWARD else make(groups)
    if name in ("lomo", "adalomo"):
        return other.Lomo(trained, model, adaptive=name == "adalomo")
    optimizer = make_optimizer(name, trained, arguments)
    if isinstance(optimizer, Blockwise) and optimizer.bits == 8:
        # As Trainer tells bitsandbytes (`GlobalOptimManager`): embeddings keep states in fp32.
        modules = (module for module in model.modules() if isinstance(module, nn.Embedding))
        optimizer.in_32_bit = {id(module.weight) for module in modules}
    return optimizer


def _projected(model: nn.Module, targets: str | Iterable[str]) -> set[int]:
    """Ids of the weights of the linear layers that ``optim_target_modules`` names (`_setup_low_rank_optimizer`)."""
    from transformers.trainer_utils import check_target_module_exists

    wanted = targets if isinstance(targets, str) else list(targets)
    everything = isinstance(wanted, str) and wanted.replace("_", "-") == "all-linear"
    found = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (everything or check_target_module_exists(wanted, name))
    }
    if not found:
        raise SettingsError(f"optim target modules {wanted!r} name no linear layer of this model.")
    return found


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
    numbers, and those in `in_32_bit` (ids), always have fp32 states. paged: states lie in unified memory, outside of PyTorch's allocator; the driver moves them to
    the CPU when the GPU is full, so they are counted as none. Small ones are never paged.
    """

    def __init__(self, parameters: list, *, states: int, bits: int, paged: bool = False):
        super().__init__(parameters, {})
        self.states, self.bits, self.paged = states, bits, paged
        self.in_32_bit: set[int] = set()

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter] = {"step": 0, **self.states_of(parameter)}

    def states_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        names = [f"state{index + 1}" for index in range(self.states)]
        paged = self.paged and parameter.numel() >= PAGED_FROM
        if self.bits == 32 or parameter.numel() < MIN_8BIT or id(parameter) in self.in_32_bit:
            return {} if paged else {name: torch.zeros_like(parameter, dtype=torch.float32) for name in names}
        blocks = -(-parameter.numel() // BLOCK_8BIT)
        codes = {} if paged else {name: torch.zeros_like(parameter, dtype=torch.uint8) for name in names}
        constants = {f"absmax{name}": parameter.new_zeros(blocks, dtype=torch.float32) for name in names}
        return codes | constants


PAGED_FROM = 100_000  # numbers (`get_state_buffer`)


def _blockwise(states: int, bits: int, paged: bool = False) -> Callable[[list], torch.optim.Optimizer]:
    return partial(Blockwise, states=states, bits=bits, paged=paged)


_MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, foreach=True),
    "adamw-loop": partial(torch.optim.AdamW, foreach=False),
    "adamw-fused": lambda parameters: FusedAdamW(parameters, {}),
    "adamw-8bit": _blockwise(2, 8),
    "paged-adamw": _blockwise(2, 32, paged=True),
    "paged-adamw-8bit": _blockwise(2, 8, paged=True),
    "lion": _blockwise(1, 32),
    "lion-8bit": _blockwise(1, 8),
    "paged-lion": _blockwise(1, 32, paged=True),
    "paged-lion-8bit": _blockwise(1, 8, paged=True),
    "ademamix": _blockwise(3, 32),
    "ademamix-8bit": _blockwise(3, 8),
    "paged-ademamix": _blockwise(3, 32, paged=True),
    "paged-ademamix-8bit": _blockwise(3, 8, paged=True),
    "rmsprop-bnb": _blockwise(1, 32),
    "rmsprop-8bit": _blockwise(1, 8),
    "adafactor": _adafactor,
    "sgd": partial(torch.optim.SGD, lr=1e-3, foreach=True),
    "adagrad": partial(torch.optim.Adagrad, foreach=True),
    "rmsprop": partial(torch.optim.RMSprop, foreach=True),
    "adamw-torchao-8bit": partial(other.TorchaoAdamW, bits=8),
    "adamw-torchao-4bit": partial(other.TorchaoAdamW, bits=4),
    "adamw-anyprecision": other.AnyPrecisionAdamW,
    "stable-adamw": other.StableAdamW,
    "schedule-free-adamw": partial(other.ScheduleFree, adaptive=True),
    "schedule-free-radam": partial(other.ScheduleFree, adaptive=True),
    "schedule-free-sgd": partial(other.ScheduleFree, adaptive=False),
    "grokadamw": other.GrokAdamW,
}

_LOW_RANK: dict[str, Callable[[list], torch.optim.Optimizer]] = {
    "galore-adamw": low_rank.GaLoreAdamW,
    "galore-adamw-8bit": lambda groups: low_rank.GaLoreAdamW8bit(
        groups, Blockwise([torch.empty(0)], states=2, bits=8).states_of
    ),
    "galore-adafactor": low_rank.GaLoreAdafactor,
    "apollo-adamw": low_rank.ApolloAdamW,
}
