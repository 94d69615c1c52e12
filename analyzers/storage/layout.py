"""How long a safetensors file is, from the names, dtypes and shapes of its tensors alone."""

from __future__ import annotations

import json
from collections.abc import Mapping

from analyzers.methods.saved import ITEM_BYTES, Tensor, item_bytes, no_dtype

PEFT_METADATA = {"format": "pt"}  # what PEFT's save_pretrained passes to safetensors

# The order in which safetensors (0.8.0, `prepare` in tensor.rs) writes the data: widest element first, then by name.
_WRITING_ORDER = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
)  # fmt: skip


def check_dtype(dtype: object) -> None:
    """Raises SettingsError for anything but the name of a dtype that an adapter can be saved in."""
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES or not Tensor((), dtype).is_float:
        raise no_dtype(dtype)


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
