"""What an optimizer leaves in a checkpoint: its state of every trained tensor, and the length of the optimizer.pt that holds it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from analyzers.memory.settings import OPTIMIZERS as TRACED_OPTIMIZERS
from analyzers.storage.layout import Tensor
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    import torch

# Those whose memory is known, and one more.
OPTIMIZERS: dict[str, str] = {**TRACED_OPTIMIZERS, "sgd-momentum": "SGD with momentum"}

QUANTISATION_MAPS = (Tensor((256,)), Tensor((256,)))  # one signed, one unsigned, shared by all tensors of a run
COUNTER = Tensor(())

State = dict[str, "Tensor | int | State"]

_SMALL = 64 * 2**20  # written for once, as a file with holes where the numbers would be
_TOO_LARGE = 4 * 2**30  # numbers for which no memory is reserved either; below, it is reserved and never touched


def state_of(optimizer: str, tensor: Tensor) -> State:
    """What `optimizer` keeps for one trained tensor after a step, under the names of its ``state_dict``; plain numbers as 0.

    Raises SettingsError for an unknown optimizer.
    """
    if optimizer not in OPTIMIZERS:
        raise SettingsError(f"Unknown optimizer {optimizer!r}; there are {', '.join(OPTIMIZERS)}.")
    return _RULES[optimizer](tensor)


@lru_cache(maxsize=256)
def optimizer_bytes(optimizer: str, tensors: tuple[Tensor, ...]) -> int:
    """Length of the optimizer.pt that transformers' Trainer writes when `tensors` are trained.

    torch.save itself lays out the file, the numbers left out (``torch.serialization.skip_data``): equal to the byte up to a state of
    64 MiB. A larger one goes into a file that keeps only its length, which calls the archive by another name than optimizer.pt does;
    that moves a record by up to the 64 bytes to which torch.save aligns it. Raises SettingsError for an unknown optimizer.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    states = [state_of(optimizer, tensor) for tensor in tensors]
    held = sum(map(_numbers, states))
    maps: dict[int, torch.Tensor] = {}
    with FakeTensorMode() if held > _TOO_LARGE else contextlib.nullcontext():
        state = {index: _made(one, maps) for index, one in enumerate(states) if one}
    document = {"state": state, "param_groups": _groups(optimizer, len(tensors))}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        if held <= _SMALL:
            with tempfile.TemporaryDirectory() as folder:
                written = Path(folder) / "optimizer.pt"
                torch.save(document, written)
                return written.stat().st_size
        length = _Length()
        torch.save(document, length)
        return length.length


class _Length:
    """A file that forgets what is written and knows how long it would be."""

    def __init__(self) -> None:
        self.length = 0

    def write(self, data: bytes) -> int:
        self.length += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self.length += offset  # torch.save only goes forward, over the numbers it leaves out
        return self.length

    def flush(self) -> None:
        pass


def _adamw(tensor: Tensor) -> State:
    return {"step": COUNTER, "exp_avg": tensor, "exp_avg_sq": tensor}


def _adamw_8bit(tensor: Tensor) -> State:
    """bitsandbytes 0.50 (`optim/optimizer.py`): two one-byte states, a constant for 256 values each, and the maps of the codes."""
    from analyzers.memory.optimizers import BLOCK_8BIT, MIN_8BIT

    if tensor.numbers < MIN_8BIT:
        kept = {"state1": Tensor(tensor.shape), "state2": Tensor(tensor.shape)}
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


def _numbers(state: State) -> int:
    """Bytes of the numbers of a state."""
    return sum(_numbers(one) if isinstance(one, dict) else one.nbytes for one in state.values() if not isinstance(one, int))


def _made(state: State, shared: dict[int, torch.Tensor]) -> dict:
    """`state` with real tensors, the quantisation maps once."""
    import torch

    made = {}
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
    """The parameter groups as a Trainer saves them: one with weight decay, one without, each with the rate its schedule began at."""
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
