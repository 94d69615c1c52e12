"""Quantised checkpoints as numbers: 8-bit floats and integers with their scales, bitsandbytes 4 and 8 bit, MXFP4. NumPy only.

Each class knows one way of storing a matrix and decodes any rows of it into float32, the exact values its codes stand for
(libraries round them again, to the dtype they compute in). `stored_tensors` finds which tensors belong together. What is not
known here is refused with the reason, never read as if it were plain numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np

from loraxs_core.errors import CheckpointError
from loraxs_core.foreign import refuse_foreign
from loraxs_core.inventory import stack_shape
from loraxs_core.safetensors_file import SafetensorsFile, TensorEntry
from loraxs_core.strips import PlainTensor, StoredTensor

FLOAT8 = ("F8_E4M3", "F8_E5M2")
# What follows the name of a float8 weight in the name of its scale: DeepSeek's, compressed-tensors' and FBGEMM's, ComfyUI's.
SCALE_NAMES = ("{tensor}_scale_inv", "{tensor}_scale", "{module}.scale_weight")
BLOCK = (128, 128)  # DeepSeek's blocks, where the config names none

_STATE = ".quant_state.bitsandbytes__"
_CHUNK = 1 << 22  # numbers decoded at a time


def stored_tensors(files: Mapping[str, SafetensorsFile], config: Mapping) -> dict[str, StoredTensor]:
    """Tensor name -> how it is read, helper tensors (scales, maps) folded into the ones they belong to.

    Raises CheckpointError in one sentence for quantised formats that are not decoded, and for parts that do not fit together.
    """
    refuse_foreign(files, config)
    helpers: set[str] = set()
    states = {name.partition(_STATE)[0]: name for name in files if _STATE in name}
    scaled = any(_scale_of(name, files) for name, file in files.items() if file.entries[name].dtype in FLOAT8)
    found: dict[str, StoredTensor] = {}
    for name, file in files.items():
        entry = file.entries[name]
        if name in states:
            found[name] = Bnb4Tensor(files, name, states[name])
        elif entry.dtype == "I8" and f"{_module(name)}.SCB" in files:
            found[name] = Bnb8Tensor(files, name)
        elif entry.dtype in FLOAT8 or (entry.dtype == "I8" and f"{name}_scale" in files):
            scale = _scale_of(name, files)
            found[name] = ScaledTensor(files, name, scale, config, must_be_scaled=scaled)
            helpers.add(scale)
        elif name.endswith("_blocks") and name.removesuffix("blocks") + "scales" in files:
            found[name.removesuffix("_blocks")] = Mxfp4Tensor(files, name)
            helpers.add(name.removesuffix("blocks") + "scales")
        else:
            found[name] = PlainTensor(file, entry, stack_shape(name, entry.shape, config))
    return {name: tensor for name, tensor in found.items() if name not in helpers}


class Decoded:
    """A quantised matrix. Subclasses decode rows; columns come from the whole, which is decoded once and kept."""

    def __init__(self, shape: tuple[int, int], decode):
        self.shape, self._decode, self._whole = shape, decode, None

    def rows(self, start: int, stop: int) -> np.ndarray:
        if self._whole is not None:
            return self._whole[start:stop]
        stop = max(start, min(stop, self.shape[0]))
        values = np.empty((stop - start, self.shape[1]), np.float32)
        step = max(1, _CHUNK // max(1, self.shape[1]))
        with np.errstate(all="ignore"):  # damaged scales give infinities, which the reader of the matrix refuses by name
            for first in range(start, stop, step):
                last = min(first + step, stop)
                values[first - start : last - start] = self._decode(first, last)
        return values

    def columns(self, start: int, stop: int) -> np.ndarray:
        if self._whole is None:
            self._whole = self.rows(0, self.shape[0])
        return self._whole[:, start:stop]


class _Quantised:
    """What the formats have in common: the main tensor, and a way to read the others whole."""

    out_first: bool | None = None

    def __init__(self, files: Mapping[str, SafetensorsFile], name: str):
        self.files, self.file = files, files[name]
        self.entry: TensorEntry = self.file.entries[name]
        self.sources: tuple[SafetensorsFile, ...] = (self.file,)

    def uses(self, name: str) -> str:
        """`name`, remembered as a tensor that this one needs."""
        self.sources = (*self.sources, self.files[name])
        return name

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.entry.name} in {self.file.path.name} cannot be dequantised: {reason}.")

    def numbers(self, name: str) -> np.ndarray:
        """A small helper tensor whole, flat, float32."""
        return self.files[name].read(name).astype(np.float32).ravel()


class ScaledTensor(_Quantised):
    """8-bit floats or integers times a scale: one number, one a row, or one a block of rows and columns (DeepSeek).

    Integers (compressed-tensors' ``int-quantized``) are symmetric; with zero points they are refused. Floats without a scale tensor the codes are plain numbers (a cast), which is believed only of checkpoints that have no scales at
    all and whose config claims no quantisation.
    """

    def __init__(self, files, name: str, scale: str | None, config: Mapping, *, must_be_scaled: bool):
        super().__init__(files, name)
        self.shape, self.dtype = self.entry.shape, self.entry.torch_dtype
        settings = config.get("quantization_config")
        if scale is None and (must_be_scaled or settings) and len(self.shape) >= 2:
            raise self.refuse(f"it is stored as {self.dtype} and its scale tensor is missing")
        if f"{name}_zero_point" in files:
            raise self.refuse("it has zero points")
        self.scale_name = scale and self.uses(scale)
        self.block = _block_of(settings)
        if scale is not None and len(self.shape) >= 2:
            self.grid = self._grid()  # refuses now what would fail in the middle of a scan

    def _grid(self) -> tuple[int, int]:
        """How many scales a matrix has down and across. Raises CheckpointError when they fit no known layout."""
        entry = self.files[self.scale_name].entries[self.scale_name]
        if entry.dtype not in ("F32", "F16", "BF16", "F64", "U8", "F8_E8M0"):
            raise self.refuse(f"its scales are {entry.torch_dtype}")
        rows, columns = self.shape[-2:]
        stack, shape = self.shape[:-2], entry.shape
        inner = shape[len(stack) :] if stack and shape[: len(stack)] == stack else shape
        if math.prod(inner) == 1:
            return 1, 1
        if inner == (rows,):
            return rows, 1
        if len(inner) == 2:
            fits = inner == (_ceil(rows, self.block[0]), _ceil(columns, self.block[1]))
            if fits or inner in ((rows, 1), (1, columns)):
                return inner
            if rows % inner[0] == 0 and columns % inner[1] == 0:  # the grid itself says how large the blocks are
                self.block = rows // inner[0], columns // inner[1]
                return inner
        raise self.refuse(f"its scales {list(shape)} fit neither its shape {list(self.shape)} nor blocks of {list(self.block)}")

    def matrix(self, expert: int | None) -> Decoded:
        rows, columns = self.shape[-2:]
        table = _code_table(self.entry.dtype)
        first = (expert or 0) * rows
        scale = self._scales(expert)

        def decode(start: int, stop: int) -> np.ndarray:
            values = table[self.file.codes(self.entry.name, (first + start) * columns, (stop - start) * columns)]
            values = values.reshape(stop - start, columns)
            if scale is not None:
                values *= self._spread(scale, start, stop, rows, columns)
            return values

        return Decoded((rows, columns), decode)

    def _scales(self, expert: int | None) -> np.ndarray | None:
        if self.scale_name is None:
            return None
        entry = self.files[self.scale_name].entries[self.scale_name]
        if entry.dtype in ("U8", "F8_E8M0"):  # an exponent alone
            codes = self.files[self.scale_name].codes(self.scale_name, 0, entry.nbytes)
            scales = np.ldexp(np.float32(1), codes.astype(np.int32) - 127)
        else:
            scales = self.numbers(self.scale_name)
        size = math.prod(self.grid)
        start = (expert or 0) * size if scales.size > size else 0
        return scales[start : start + size].reshape(self.grid)

    def _spread(self, scale: np.ndarray, start: int, stop: int, rows: int, columns: int) -> np.ndarray:
        """`scale` of rows `start` to `stop`, as something that multiplies them."""
        if scale.shape[0] == rows:
            scale = scale[start:stop]
        elif scale.shape[0] > 1:
            scale = scale[np.arange(start, stop) // self.block[0]]
        if scale.shape[1] not in (1, columns):
            scale = np.repeat(scale, self.block[1], axis=1)[:, :columns]
        return scale


class Bnb8Tensor(_Quantised):
    """bitsandbytes LLM.int8: W = codes * SCB / 127, SCB the largest magnitude of each row (arXiv 2208.07339)."""

    dtype = "int8"

    def __init__(self, files, name: str):
        super().__init__(files, name)
        self.shape = self.entry.shape
        if len(self.shape) != 2:
            raise self.refuse(f"its shape {list(self.shape)} is not a matrix")
        self.scb_name = self.uses(f"{_module(name)}.SCB")
        if self.files[self.scb_name].entries[self.scb_name].shape != self.shape[:1] or not files[self.scb_name].is_float(
            self.scb_name
        ):
            raise self.refuse("its SCB does not hold one number a row")

    def matrix(self, expert: int | None) -> Decoded:
        columns = self.shape[1]
        scale = self.numbers(self.scb_name) / np.float32(127)

        def decode(start: int, stop: int) -> np.ndarray:
            codes = self.file.codes(self.entry.name, start * columns, (stop - start) * columns).view(np.int8)
            return codes.reshape(stop - start, columns).astype(np.float32) * scale[start:stop, None]

        return Decoded(self.shape, decode)


class Bnb4Tensor(_Quantised):
    """bitsandbytes NF4 or FP4: 4-bit codes, high half of a byte first, into a map of 16 values, times one scale a block.

    With double quantisation the scales are themselves 8-bit codes into a map of 256 values, times one scale a block of them,
    plus an offset (arXiv 2305.14314; bitsandbytes/functional.py, QuantState).
    """

    def __init__(self, files, name: str, state_name: str):
        super().__init__(files, name)
        self.state = self._read_state(self.uses(state_name))
        self.dtype = state_name.partition(_STATE)[2]
        shape, block = self.state.get("shape"), self.state.get("blocksize")
        if (
            not isinstance(shape, list)
            or not 1 <= len(shape) <= 4
            or not all(_positive(side) for side in shape)
            or not _positive(block)
        ):
            raise self.refuse("its quantisation state is damaged")
        self.shape, self.block, self.count = tuple(shape), block, math.prod(shape)
        if self.entry.nbytes != _ceil(self.count, 2):
            raise self.refuse(f"shape {shape} needs {_ceil(self.count, 2):,} bytes and there are {self.entry.nbytes:,}")
        self._check_companion(".quant_map", 16)
        self._check_companion(".absmax", _ceil(self.count, block))
        if self._is_nested:
            nested = self.state.get("nested_blocksize")
            if not _positive(nested) or not isinstance(self.state.get("nested_offset"), (int, float)):
                raise self.refuse("its quantisation state is damaged")
            self._check_companion(".nested_quant_map", 256)
            self._check_companion(".nested_absmax", _ceil(_ceil(self.count, block), nested))

    @property
    def _is_nested(self) -> bool:
        return "nested_blocksize" in self.state

    def _read_state(self, state_name: str) -> dict:
        entry = self.files[state_name].entries[state_name]
        if entry.dtype != "U8" or entry.nbytes > 1 << 16:
            raise self.refuse("its quantisation state is damaged")
        try:
            state = json.loads(self.files[state_name].read(state_name).tobytes())
        except (ValueError, RecursionError):
            state = None
        if not isinstance(state, dict):
            raise self.refuse("its quantisation state is damaged")
        return state

    def _check_companion(self, part: str, size: int) -> None:
        name = f"{self.entry.name}{part}"
        if name not in self.files:
            raise self.refuse(f"its companion {name!r} is missing")
        entry = self.files[self.uses(name)].entries[name]
        codes = part == ".absmax" and self._is_nested
        if math.prod(entry.shape) != size or (entry.dtype == "U8") != codes or not (codes or self.files[name].is_float(name)):
            raise self.refuse(f"{name!r} does not hold {size:,} {'codes' if codes else 'numbers'}")

    def matrix(self, expert: int | None) -> Decoded:
        if len(self.shape) != 2:
            raise self.refuse(f"its shape {list(self.shape)} is not a matrix")
        name, columns = self.entry.name, self.shape[1]
        levels = self.numbers(f"{name}.quant_map")
        scales = self._scales()

        def decode(start: int, stop: int) -> np.ndarray:
            first, last = start * columns, stop * columns
            packed = self.file.codes(name, first // 2, _ceil(last, 2) - first // 2)
            codes = np.empty(2 * packed.size, np.uint8)
            codes[0::2], codes[1::2] = packed >> 4, packed & 15
            values = levels[codes[first % 2 : first % 2 + last - first]]
            values *= scales[np.arange(first, last) // self.block]
            return values.reshape(stop - start, columns)

        return Decoded(self.shape, decode)

    def _scales(self) -> np.ndarray:
        name, blocks = self.entry.name, _ceil(self.count, self.block)
        if not self._is_nested:
            return self.numbers(f"{name}.absmax")
        codes = self.files[f"{name}.absmax"].read(f"{name}.absmax").ravel()
        levels, outer = self.numbers(f"{name}.nested_quant_map"), self.numbers(f"{name}.nested_absmax")
        spread = outer[np.arange(blocks) // self.state["nested_blocksize"]]
        return levels[codes] * spread + np.float32(self.state["nested_offset"])


class Mxfp4Tensor(_Quantised):
    """MXFP4 (gpt-oss): blocks of 32 E2M1 codes, low half of a byte first, times 2^(scale - 127) (OCP Microscaling 1.0).

    Codes lie in ``NAME_blocks`` (experts x out x blocks x 16 bytes), scales in ``NAME_scales``; matrices are (out x in).
    """

    dtype = "mxfp4"
    out_first = True
    LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)

    def __init__(self, files, name: str):
        super().__init__(files, name)
        shape = self.entry.shape
        if self.entry.dtype != "U8" or len(shape) < 3 or shape[-1] != 16:
            raise self.refuse(f"its shape {list(shape)} is not that of MXFP4 blocks")
        self.scale_name = self.uses(name.removesuffix("blocks") + "scales")
        scales = self.files[self.scale_name].entries[self.scale_name]
        if scales.shape != shape[:-1] or scales.dtype != "U8":
            raise self.refuse("its scales do not fit its blocks")
        self.shape = (*shape[:-2], shape[-2] * 32)

    def matrix(self, expert: int | None) -> Decoded:
        rows, columns = self.shape[-2:]
        first = (expert or 0) * rows

        def decode(start: int, stop: int) -> np.ndarray:
            at, blocks = first + start, (stop - start) * columns // 32
            packed = self.file.codes(self.entry.name, at * columns // 2, blocks * 16)
            scales = self.file.codes(self.scale_name, at * columns // 32, blocks)
            values = np.empty(2 * packed.size, np.float32)
            values[0::2], values[1::2] = self.LEVELS[packed & 15], self.LEVELS[packed >> 4]
            values = np.ldexp(values.reshape(blocks, 32), scales.astype(np.int32)[:, None] - 127)
            return values.reshape(stop - start, columns)

        return Decoded((rows, columns), decode)


def _scale_of(name: str, files: Mapping[str, SafetensorsFile]) -> str | None:
    names = (pattern.format(tensor=name, module=_module(name)) for pattern in SCALE_NAMES)
    return next((scale for scale in names if scale in files), None)


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _block_of(settings: object) -> tuple[int, int]:
    block = settings.get("weight_block_size") if isinstance(settings, Mapping) else None
    return tuple(block) if isinstance(block, list) and len(block) == 2 and all(map(_positive, block)) else BLOCK


def _ceil(count: int, size: int) -> int:
    """How many pieces of `size` hold `count`."""
    return -(-count // size)


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40


def _code_table(dtype: str) -> np.ndarray:
    """The 256 numbers of an 8-bit format, float32 (arXiv 2209.05433; E4M3 is the "fn" variant: no infinities)."""
    codes = np.arange(256)
    if dtype == "I8":
        return codes.astype(np.uint8).view(np.int8).astype(np.float32)
    sign = np.where(codes & 128, -1.0, 1.0)
    mantissa_bits, bias = (3, 7) if dtype == "F8_E4M3" else (2, 15)
    exponent = (codes & 127) >> mantissa_bits
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    values = sign * np.where(exponent == 0, np.ldexp(mantissa, 1 - bias), np.ldexp(1 + mantissa, exponent - bias))
    if dtype == "F8_E4M3":
        values[(codes & 127) == 127] = np.nan
    else:
        values[(exponent == 31) & (mantissa == 0)] *= np.inf
        values[(exponent == 31) & (mantissa != 0)] = np.nan
    return values.astype(np.float32)
