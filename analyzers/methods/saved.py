"""What a method writes to disk, in the terms its rule is stated in: modules in, named tensors out. No weights, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from loraxs_core.dtypes import DTYPES
from loraxs_core.errors import SettingsError

ITEM_BYTES = {torch_name: (size, name) for name, (size, torch_name) in DTYPES.items()}
PREFIX = "base_model.model."  # of every key that PEFT saves


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written. shape: its sides. dtype: as PyTorch spells it, ``float32``."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return "float" in self.dtype

    @property
    def nbytes(self) -> int:
        return self.numbers * item_bytes(self.dtype)


def item_bytes(dtype: str) -> int:
    """Bytes of one number. Raises SettingsError for a dtype that safetensors cannot hold."""
    try:
        return ITEM_BYTES[dtype][0]
    except KeyError:
        raise no_dtype(dtype) from None


def no_dtype(dtype: object) -> SettingsError:
    return SettingsError(f"Unknown dtype {dtype!r}; adapters are saved as float32, bfloat16 or float16.")


@dataclass(frozen=True)
class Module:
    """A module with an adapter: its path in the loaded model, W0's shape (out, in) or an embedding's (entries, width), the adapter's
    rank, and its kind as `Weight` has it: ``linear``, ``conv1d`` (GPT-2's) or ``embedding``. fp32: whether transformers keeps it
    in float32 whatever the model is loaded in, as T5's ``wo``; PEFT follows."""

    path: str
    out: int
    inner: int
    rank: int
    kind: str = "linear"
    fp32: bool = False

    @property
    def conv1d(self) -> bool:
        return self.kind == "conv1d"

    def dtype(self, asked: str) -> str:
        """Of the adapter's tensors on this module, where a model of `asked` is adapted."""
        return "float32" if self.fp32 else asked


@dataclass(frozen=True)
class Saved:
    """What a method writes. tensors: key -> `Tensor`. trained: the adapter's tensors that are trained, in the precision they
    are trained in. shared: frozen numbers that every adapter on the same base has in common, written or not."""

    tensors: Mapping[str, Tensor]
    trained: tuple[Tensor, ...] = ()
    shared: int = 0
