"""Optimizers of other libraries that `TrainingArguments.optim` names: the tensors that each step makes and keeps, in the order of
their own loops. Only memory can be learned here.

Sources: `torchao` 0.18 (`optim/adam.py`, `subclass_8bit.py`, `subclass_4bit.py`), `torchdistx` (`optimizers/anyprecision_optimizer.py`),
`torch-optimi` 0.3.3 (`stableadamw.py`, its Triton kernels), `schedulefree` 1.4.1, `grokadamw` 0.1.2, `lomo-optim` 0.1.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from analyzers.optimizers import MIN_8BIT


class _Looping(Optimizer):
    """One that goes through its parameters one by one."""

    def __init__(self, parameters: list):
        super().__init__(parameters, {})

    def _each(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield parameter, self.state[parameter]


class TorchaoAdamW(_Looping):
    """Two states of `bits` bits, a constant for each block of them in fp32, and a table of the codes; small or odd tensors keep the
    parameter's precision. The step is compiled into kernels, which are taken to hold nothing."""

    def __init__(self, parameters: list, *, bits: int, block: int = 256):
        super().__init__(parameters)
        self.bits, self.block = bits, block

    @torch.no_grad()
    def step(self, closure=None):
        for parameter, state in self._each():
            if not state:
                for name in ("exp_avg", "exp_avg_sq"):
                    state |= self._state(name, parameter)

    def _state(self, name: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        count = parameter.numel()
        if count < MIN_8BIT or count % self.block:
            return {name: torch.zeros_like(parameter)}
        codes = parameter.new_zeros(count * self.bits // 8, dtype=torch.uint8)
        scale = parameter.new_zeros(count // self.block, dtype=torch.float32)
        table = parameter.new_zeros(2**self.bits, dtype=torch.float32)
        return {name: codes, f"{name}_scale": scale, f"{name}_table": table}


class AnyPrecisionAdamW(_Looping):
    """Momentum and variance in fp32, as transformers sets them; no compensation."""

    @torch.no_grad()
    def step(self, closure=None):
        for parameter, state in self._each():
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
                state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
            variance = (state["exp_avg_sq"].sqrt() / 1.0).add_(1e-8)
            parameter.addcdiv_(state["exp_avg"], variance)


class StableAdamW(_Looping):
    """States like the parameters, and a third one that makes up for rounding where they are in 16 bit; one kernel for each."""

    @torch.no_grad()
    def step(self, closure=None):
        for parameter, state in self._each():
            if not state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["mean_square"] = parameter.new_zeros(1, dtype=torch.float32)
                if parameter.dtype in (torch.float16, torch.bfloat16):
                    state["compensation"] = torch.zeros_like(parameter)
                else:
                    state["compensation"] = parameter.new_zeros(1, dtype=torch.uint8)


class ScheduleFree(Optimizer):
    """A copy of the weights, and with `adaptive` a second moment; all parameters at once (foreach)."""

    def __init__(self, parameters: list, *, adaptive: bool):
        super().__init__(parameters, {})
        self.adaptive = adaptive

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            active = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in active:
                if not self.state[parameter]:
                    self.state[parameter]["z"] = torch.clone(parameter)
                    if self.adaptive:
                        self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
            if self.adaptive and active:
                denominators = torch._foreach_div([self.state[parameter]["exp_avg_sq"] for parameter in active], 1.0)
                torch._foreach_div_([parameter.grad for parameter in active], denominators)


class GrokAdamW(_Looping):
    """Three states on the CPU, which come to the GPU for one parameter at a time."""

    @torch.no_grad()
    def step(self, closure=None):
        for parameter, _ in self._each():
            first, second, slow = (torch.empty_like(parameter) for _ in range(3))
            amplified = parameter.grad + 2.0 * slow
            second.addcmul_(amplified, amplified)
            parameter.addcdiv_(first, second.sqrt().add_(1e-8))


class Lomo(Optimizer):
    """Each weight is updated, in fp32, when the gradient of the next one arrives; the last one after the backward pass. adaptive: AdaLomo,
    whose factored second moments are there for frozen weights too.
    """

    def __init__(self, parameters: list, model: nn.Module | None = None, *, adaptive: bool):
        super().__init__(parameters, {})
        self.adaptive = adaptive
        self._waiting: torch.Tensor | None = None
        if adaptive:
            for parameter in model.parameters() if model is not None else parameters:
                shapes = [parameter.shape] if parameter.dim() == 1 else [parameter.shape[:1], parameter.shape[1:2]]
                moments = {f"exp_avg_sq{at}": parameter.new_zeros(one, dtype=torch.float32) for at, one in enumerate(shapes)}
                self.state[parameter] = moments
        for parameter in parameters:
            parameter.register_hook(self._arrival(parameter))

    def step(self, closure=None):
        pass

    def _arrival(self, parameter: torch.Tensor) -> Callable[[torch.Tensor], None]:
        def arrived(_gradient: torch.Tensor) -> None:
            self.finish_backward()
            self._waiting = parameter

        return arrived

    @torch.no_grad()
    def finish_backward(self) -> None:
        """Updates the parameter whose gradient came last."""
        parameter, self._waiting = self._waiting, None
        if parameter is None or parameter.grad is None:
            return
        gradient = parameter.grad.to(torch.float32)
        parameter.grad = None
        if self.adaptive:
            update = gradient**2 + 1e-30
            moments = list(self.state[parameter].values())
            if len(moments) == 2 and parameter.dim() == 2:
                update = (moments[0] / 1.0).unsqueeze(-1) * moments[1].unsqueeze(-2).rsqrt()
                update.mul_(gradient)
            elif len(moments) == 1:
                update = moments[0].rsqrt().mul_(gradient)
            update.div_(1.0)
        whole = parameter.data.to(torch.float32)
        whole.add_(update if self.adaptive else gradient)
        parameter.data.copy_(whole)


class Layerwise:
    """An optimizer for each parameter, called when its gradient is complete, which is then dropped (`LayerWiseDummyOptimizer`)."""

    def __init__(self, groups: Sequence[dict], make: Callable[[list[dict]], Optimizer]):
        self.param_groups: list[dict] = []
        self._each: dict[torch.Tensor, Optimizer] = {}
        for group in groups:
            for parameter in group["params"]:
                self._each[parameter] = make([{**group, "params": [parameter]}])
                parameter.register_post_accumulate_grad_hook(self._arrived)

    @property
    def state(self) -> dict:
        return {parameter: state for one in self._each.values() for parameter, state in one.state.items()}

    def _arrived(self, parameter: torch.Tensor) -> None:
        self._each[parameter].step()
        self._each[parameter].zero_grad()

    def step(self) -> None:
        pass

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass
