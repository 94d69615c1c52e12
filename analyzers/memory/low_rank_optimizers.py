"""GaLore's and APOLLO's optimizers: the tensors that each step makes and keeps, in the order of the libraries' own loops.

Sources: `galore_torch` 1.0 (`galore_projector.py`, `adamw.py`, `adamw8bit.py`, `adafactor.py`) and `apollo_torch` 1.0.3
(`apollo.py`, `random_projector.py`). Projections are renewed every so many steps; here in each recorded one, which is when the
peak is. Only memory can be learned here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


def _basis(gradient: torch.Tensor, rank: int, *, right: bool) -> torch.Tensor:
    """GaLore's projection (`get_orthogonal_matrix`): singular vectors of the gradient in fp32, from which a slice is copied in 16 bit
    and shown in fp32. A copy stands for the one that cuSOLVER works on; its workspace comes on top."""
    matrix = gradient.float()
    work = matrix.clone()
    left, values, rights = torch.linalg.svd(matrix, full_matrices=False)
    del work
    if right:
        other = left[:, :rank] @ torch.diag(values[:rank])
        found = rights[:rank, :]
    else:
        found = left[:, :rank]
        other = torch.diag(values[:rank]) @ rights[:rank, :]
    result = found.to(gradient.dtype)
    del other
    return result


def _random(gradient: torch.Tensor, rank: int, *, right: bool) -> torch.Tensor:
    """APOLLO's projection (`get_orthogonal_matrix` of `random_projector.py`), which copies the gradient to fp32 for its shape."""
    matrix = gradient.float()
    shape = (rank, matrix.shape[1]) if right else (matrix.shape[0], rank)
    drawn = torch.empty(shape, dtype=torch.float32, device=gradient.device)
    return (drawn / 1.0).to(gradient.dtype)


class Projected(Optimizer):
    """What the low-rank optimizers share. A group with a ``rank`` is projected, by the ``std`` rule: from the right where the matrix
    is at least as tall as wide. random: APOLLO's projection, drawn rather than computed."""

    random = False

    def __init__(self, groups: list[dict[str, Any]]):
        super().__init__(groups, {})

    def _project(self, gradient: torch.Tensor, group: dict, state: dict) -> torch.Tensor:
        right = gradient.shape[0] >= gradient.shape[1]
        make = _random if self.random else _basis
        state["projection"] = make(gradient, min(group["rank"], *gradient.shape), right=right)
        return gradient @ state["projection"].t() if right else state["projection"].t() @ gradient

    @staticmethod
    def _back(low: torch.Tensor, state: dict, shape: torch.Size) -> torch.Tensor:
        full = low @ state["projection"] if shape[0] >= shape[1] else state["projection"] @ low
        return full * 1.0

    def _each(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield group, parameter, self.state[parameter]


class GaLoreAdamW(Projected):
    @torch.no_grad()
    def step(self, closure=None):
        # The last names of a turn live into the next one, as they do in the library's loop.
        for group, parameter, state in self._each():
            gradient = parameter.grad
            if "rank" in group:
                gradient = self._project(gradient, group, state)
            if "exp_avg" not in state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            denominator = state["exp_avg_sq"].sqrt()
            update = state["exp_avg"] / denominator
            if "rank" in group:
                update = self._back(update, state, parameter.shape)
            parameter.add_(update)


class ApolloAdamW(Projected):
    random = True

    @torch.no_grad()
    def step(self, closure=None):
        for group, parameter, state in self._each():
            gradient = parameter.grad
            if "rank" in group:
                gradient = self._project(gradient, group, state)
            if "exp_avg" not in state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            denominator = state["exp_avg_sq"].sqrt()
            update = state["exp_avg"] / denominator
            if "rank" in group:
                scaled = parameter.grad * 1.0  # by a factor for each channel
                scaled = scaled / torch.ones((), device=scaled.device)  # the limiter of its growth
                update = scaled
            parameter.add_(update)


class GaLoreAdafactor(Projected):
    @torch.no_grad()
    def step(self, closure=None):
        for group, parameter, state in self._each():
            gradient = parameter.grad.float()
            if "rank" in group:
                gradient = self._project(gradient, group, state)
            if "exp_avg_sq" not in state and "exp_avg_sq_row" not in state:
                if gradient.dim() >= 2:
                    state["exp_avg_sq_row"] = torch.zeros_like(gradient[..., 0])
                    state["exp_avg_sq_col"] = torch.zeros_like(gradient[..., 0, :])
                else:
                    state["exp_avg_sq"] = torch.zeros_like(gradient)
            whole = parameter.float()
            update = (gradient**2) + 1e-30
            if gradient.dim() >= 2:
                update = state["exp_avg_sq_row"].unsqueeze(-1) * state["exp_avg_sq_col"].unsqueeze(-2)
            else:
                update = state["exp_avg_sq"].rsqrt()
            if "rank" in group:
                update = self._back(update, state, parameter.shape)
            whole.add_(-update)
            parameter.copy_(whole)


class GaLoreAdamW8bit(Projected):
    """bitsandbytes' states of what is projected. While a weight is updated a copy of it waits and a low-rank one stands in for it; the
    copy then is the weight, and the projection the gradient."""

    def __init__(self, groups: list[dict[str, Any]], states: Callable[[torch.Tensor], dict[str, torch.Tensor]]):
        super().__init__(groups)
        self._states = states  # `Blockwise.states_of`

    @torch.no_grad()
    def step(self, closure=None):
        for group, parameter, state in self._each():
            if "rank" not in group:
                if "state1" not in state:
                    state.update(self._states(parameter))
                continue
            gradient = self._project(parameter.grad, group, state)
            saved = parameter.data.clone()
            parameter.data = gradient.clone()
            parameter.grad = gradient
            if "state1" not in state:
                state.update(self._states(parameter))
            parameter.data = saved.add_(self._back(parameter.data, state, saved.shape))


def param_groups(trained: list, projected: set[int], rank: int) -> list[dict[str, Any]]:
    """The groups that transformers makes (`_setup_low_rank_optimizer`): all other parameters first. projected: ids."""
    others = [one for one in trained if id(one) not in projected]
    low = [one for one in trained if id(one) in projected]
    return [{"params": others}, {"params": low, "rank": rank}]
