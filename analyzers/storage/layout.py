"""How long a safetensors file is, from the names, dtypes and shapes of its tensors alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from loraxs_core.errors import SettingsError
from loraxs_core.safetensors_file import DTYPES

ITEM_BYTES = {torch_name: (size, name) for name, (size, torch_name) in DTYPES.items()}
PEFT_METADATA = {"format": "pt"}  # what PEFT's save_pretrained passes to safetensors

# The order in which safetensors (0.8.0, `prepare` in tensor.rs) writes the data: widest element first, then by name.
_WRITING_ORDER = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
)  # fmt: skip


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
        raise _no_dtype(dtype) from None


def check_dtype(dtype: object) -> None:
    """Raises SettingsError for anything but the name of a dtype that an adapter can be saved in."""
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES or not Tensor((), dtype).is_float:
        raise _no_dtype(dtype)


def _no_dtype(dtype: object) -> SettingsError:
    return SettingsError(f"Unknown dtype {dtype!r}; adapters are saved as float32, bfloat16 or float16.")


def header_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Bytes before the data: the 8-byte length and the JSON header padded with spaces to a multiple of 8.

    metadata: of the file; what PEFT writes by default. Format: https://huggingface.co/docs/safetensors; layout as the
    reference implementation 0.8.0 writes it (compact JSON, metadata first, tensors in the order of the data).
    """
    for tensor in tensors.values():
        item_bytes(tensor.dtype)
    written = sorted(
        ((ITEM_BYTES[tensor.dtype][1], name, tensor) for name, tensor in tensors.items()),
        key=lambda item: (_WRITING_ORDER.index(item[0]), item[1].encode()),
    )
    header: dict[str, object] = {}
    metadata = PEFT_METADATA if metadata is None else metadata
    if metadata:
        header["__metadata__"] = dict(metadata)
    begin = 0
    for dtype, name, tensor in written:
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, begin + tensor.nbytes]}
        begin += tensor.nbytes
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + length + -length % 8


def data_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors themselves."""
    return sum(tensor.nbytes for tensor in tensors.values())
