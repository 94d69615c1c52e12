"""What an optimizer leaves in a checkpoint: its state of every trained tensor, and the length of optimizer.pt."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzers.methods.saved import Tensor
from analyzers.optimizers import BLOCK_8BIT, MIN_8BIT
from analyzers.optimizers import OPTIMIZERS as KNOWN_OPTIMIZERS
from analyzers.units import MIB
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    import torch

QUANTISATION_MAPS = (Tensor((256,)), Tensor((256,)))  # one signed, one unsigned, shared by all tensors of a run
COUNTER = Tensor(())

State = dict[str, "Tensor | int | State"]

_SMALL = 64 * MIB  # bytes of state up to which a file is laid out with the tensors' own shapes


def check_optimizer(name: str) -> None:
    """Raises SettingsError for an optimizer whose state is not known."""
    if name not in OPTIMIZERS:
        raise SettingsError(f"Unknown optimizer {name!r}; there are {', '.join(OPTIMIZERS)}.")


def state_of(optimizer: str, tensor: Tensor) -> State:
    """What `optimizer` keeps for one trained tensor after a step, under the names of its ``state_dict``; plain numbers as 0.

    Raises SettingsError for an unknown optimizer.
    """
    check_optimizer(optimizer)
    return _RULES[optimizer](tensor)


@lru_cache(maxsize=256)
def optimizer_bytes(optimizer: str, tensors: tuple[Tensor, ...]) -> int:
    """Length of the optimizer.pt that transformers' Trainer writes when `tensors` are trained.

    torch.save itself lays out the file, the numbers left out (``torch.serialization.skip_data``): equal to the byte up to a
    state of 64 MiB. In a larger one, short tensors stand in for the real ones and the missing numbers are added: within 64
    bytes a record, to which torch.save aligns them. Raises SettingsError for an unknown optimizer.
    """
    import torch

    states = [state_of(optimizer, tensor) for tensor in tensors]
    held, short = sum(map(_numbers, states)), False
    if held > _SMALL:
        states, short = [_shortened(one) for one in states], True
    maps: dict[int, torch.Tensor] = {}
    state = {index: _made(one, maps) for index, one in enumerate(states) if one}
    with tempfile.TemporaryDirectory() as folder, torch.serialization.skip_data():
        written = Path(folder) / "optimizer.pt"
        torch.save({"state": state, "param_groups": _groups(optimizer, len(tensors))}, written)
        return written.stat().st_size + (held - sum(map(_numbers, states)) if short else 0)


def _adamw(tensor: Tensor) -> State:
    return {"step": COUNTER, "exp_avg": tensor, "exp_avg_sq": tensor}


def _adamw_8bit(tensor: Tensor) -> State:
    """bitsandbytes 0.50 (`optim/optimizer.py`): two one-byte states, a constant for 256 values, the maps of the codes."""
    if tensor.numbers < MIN_8BIT:
        kept: State = {"state1": Tensor(tensor.shape), "state2": Tensor(tensor.shape)}
    else:
        codes, constants = Tensor(tensor.shape, "uint8"), Tensor((-(-tensor.numbers // BLOCK_8BIT),))
        signed, unsigned = QUANTISATION_MAPS
        first = {"state1": codes, "qmap1": signed, "state2": codes, "qmap2": unsigned}
        kept = {**first, "absmax1": constants, "absmax2": constants}
    return {"step": 0, "__bnb_optimizer_quant_state__": kept}


def _adafactor(tensor: Tensor) -> State:
    """transformers' Adafactor as its Trainer sets it, without a first moment: a row and a column of the second, in float32."""
    if len(tensor.shape) < 2:
        return {"step": 0, "exp_avg_sq": Tensor(tensor.shape), "RMS": COUNTER}
    *others, rows, columns = tensor.shape
    return {
        "step": 0,
        "exp_avg_sq_row": Tensor((*others, rows)),
        "exp_avg_sq_col": Tensor((*others, columns)),
        "RMS": COUNTER,
    }


_RULES: Mapping[str, Callable[[Tensor], State]] = {
    "adamw": _adamw,
    "adamw-fused": _adamw,
    "adamw-loop": _adamw,
    "adamw-8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "sgd": lambda tensor: {},
    "sgd-momentum": lambda tensor: {"momentum_buffer": tensor},
}

# Those whose state dictionary is known here.
OPTIMIZERS: dict[str, str] = {**KNOWN_OPTIMIZERS, "sgd-momentum": "SGD with momentum"}
OPTIMIZERS = {name: OPTIMIZERS[name] for name in _RULES}


def _numbers(state: State) -> int:
    """Bytes of the numbers of a state."""
    return sum(_numbers(one) if isinstance(one, dict) else one.nbytes for one in state.values() if not isinstance(one, int))


def _shortened(state: State) -> State:
    """The same state of tensors with as many bytes beyond a multiple of 64, to which records are aligned, and few besides."""
    return {
        name: _shortened(one) if isinstance(one, dict) else _short(one) if isinstance(one, Tensor) else one
        for name, one in state.items()
    }


def _short(tensor: Tensor) -> Tensor:
    if tensor.numbers < 128 or any(tensor is one for one in QUANTISATION_MAPS):
        return tensor
    return Tensor((64 + tensor.numbers % 64,), tensor.dtype)


def _made(state: State, shared: dict[int, torch.Tensor]) -> dict:
    """`state` with real tensors, the quantisation maps once."""
    import torch

    made: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, dict):
            made[name] = _made(value, shared)
        elif not isinstance(value, Tensor):
            made[name] = value
        elif any(value is one for one in QUANTISATION_MAPS):
            made[name] = shared.setdefault(id(value), torch.empty(value.shape, dtype=torch.float32))
        else:
            made[name] = torch.empty(value.shape, dtype=getattr(torch, value.dtype))
    return made


def _groups(optimizer: str, count: int) -> list[dict]:
    """The parameter groups as a Trainer saves them: one with weight decay, one without, each with its first rate."""
    import torch

    from analyzers.memory.optimizers import make_optimizer

    if optimizer == "adamw-8bit":
        settings = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "alpha": 0.0}
        settings |= {"t_alpha": None, "t_beta3": None}
    else:
        one = [torch.nn.Parameter(torch.zeros(1))]
        plain = {"adamw-fused": "adamw-loop", "sgd-momentum": "sgd"}.get(optimizer, optimizer)
        settings = make_optimizer(plain, one).state_dict()["param_groups"][0]
        settings.pop("params")
        settings |= {"weight_decay": 0.0} | ({"momentum": 0.9} if optimizer == "sgd-momentum" else {})
    return [{**settings, "initial_lr": 1e-3, "params": params} for params in (list(range(count)), [])]
