"""What linear weights a model has, and each of them as a matrix, without loading the model.

A `Checkpoint` is read from safetensors headers (a folder on disk) or from a transformers config alone
(`loraxs_core.architecture`); both give the same inventory of `Weight` entries. `read` returns one matrix at a time as
W0 (out x in). Knows safetensors and config.json; does not import transformers, torch or pandas.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from loraxs_core.errors import CheckpointError, ModelNotFound, NonFiniteWeights, WeightsMissing
from loraxs_core.fused import ROLES as PART_ROLES
from loraxs_core.fused import part_rows
from loraxs_core.html import table
from loraxs_core.inventory import TensorInfo, Weight, inventory, pattern_key
from loraxs_core.paths import user_path
from loraxs_core.quantized import stored_tensors
from loraxs_core.roles import stack_of
from loraxs_core.safetensors_file import SafetensorsFile, TensorEntry
from loraxs_core.strips import Product, SelectedRows, StoredTensor, Strips, Transposed

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")

_FUSED_ROLE = {part: "attention.qkv" if role.startswith("attention") else "mlp.gate_up" for part, role in PART_ROLES.items()}

_COMPARED = 2**16  # numbers compared at a time

_FACTOR = re.compile(r"lora_(?:A|B|down|up)(?:\.\w+)?$")  # as PEFT, diffusers and kohya-ss call them

__all__ = ["Checkpoint", "Weight", "pattern_key", "tensors_of"]


@dataclass
class Checkpoint:
    """A model's inventory, with or without weights behind it.

    name: what the user called the model. config: its config.json as a dict ({} when absent). weights: every weight matrix in
    the order of depth. folder: where the files are; None for an architecture without weights. files: tensor name -> the file it
    is in. tensors: tensor name -> how its numbers are read, quantised ones with their scales.
    """

    name: str
    config: dict
    weights: list[Weight]
    folder: Path | None = None
    files: dict[str, SafetensorsFile] = field(default_factory=dict, repr=False)
    tensors: dict[str, StoredTensor] = field(default_factory=dict, repr=False)
    note: str = ""  # something the user should know about the source, such as 4-bit rounding in its past
    derivation: str = ""  # what was done to the files' numbers, where they are not taken as they are; part of the fingerprint
    as_stored: Checkpoint | None = field(default=None, repr=False)  # where this is another, as transformers holds it in memory

    def _repr_html_(self) -> str:
        rows = ((one.name, one.role, f"{one.shape[0]} x {one.shape[1]}", one.dtype, one.parameters) for one in self.weights)
        caption = f"{self.name}: {len(self.weights)} weight matrices, {self.parameters:,} numbers"
        return table(caption, ["name", "role", "out x in", "dtype", "numbers"], rows, total=len(self.weights))

    @classmethod
    def open(cls, path: str | os.PathLike, name: str | None = None, *, module: str | None = None) -> Checkpoint:
        """Reads the inventory of a folder with safetensors files (or of one such file) from the headers alone.

        module: of a sharded checkpoint, only what belongs to this module (see `tensors_of`); other shards may be missing.
        Raises ModelNotFound when there is nothing at `path`, CheckpointError in one sentence for what cannot be read: no
        safetensors, pickle only, a shard that the index names and the folder lacks, a corrupted file.
        """
        path = user_path(path)
        if not path.exists():
            raise ModelNotFound(f"There is no folder {path}; check the path or give a catalogue name or a hub id.")
        folder = path if path.is_dir() else path.parent
        config = read_config(folder / CONFIG)
        files = _open_files(path, module)
        tensors = stored_tensors(files, config)
        infos = {name: TensorInfo(tensor.shape, tensor.dtype, tensor.out_first) for name, tensor in tensors.items()}
        weights = inventory(infos, config)
        if weights and all(_FACTOR.search(weight.name) for weight in weights):
            raise CheckpointError(
                f"{path} holds the factors of a LoRA, not weights; give the folder that PEFT saved it in, with its {ADAPTER_CONFIG}."
            )
        if not any(weight.is_linear for weight in weights):
            raise CheckpointError(f"{path} holds no linear weight matrices (2-D tensors named *.weight).")
        opened = cls(name=name or str(path), config=config, weights=weights, folder=folder, files=files, tensors=tensors)
        opened.weights = [opened._untied(weight) for weight in weights]
        return opened

    @property
    def has_weights(self) -> bool:
        return bool(self.files)

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture, such as ``bert``; empty when there is no config.json."""
        return str(self.config.get("model_type", ""))

    @property
    def linear(self) -> list[Weight]:
        """The weights that a scan reads: linear layers and experts that hold their own numbers."""
        return [weight for weight in self.weights if weight.is_linear and not weight.tied_to]

    @property
    def parameters(self) -> int:
        """Numbers in all weight matrices, embeddings included, tied ones once (biases and norms not counted)."""
        return sum(weight.parameters for weight in self.weights)

    @property
    def layers(self) -> int:
        """Depth: how many layers hold adaptable weights, an encoder's and a decoder's together."""
        return len({stack_of(weight.name) for weight in self.weights if weight.is_adaptable and weight.layer is not None})

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the config and of every file's name, tensor table, `file_stamp` and sampled bytes: changes when one does."""
        digest = hashlib.sha256(json.dumps([self.derivation, self.config], sort_keys=True, default=str).encode())
        files = {id(file): file for file in self.files.values()}.values()  # each once: a file has thousands of tensors
        for path in sorted({str(file.path.resolve()): file for file in files}.items()):
            digest.update(repr((path[0], path[1].stamp, path[1].sample, sorted(map(repr, path[1].entries.values())))).encode())
        return digest.hexdigest()

    @cached_property
    def _by_name(self) -> dict[str, Weight]:
        return {weight.name: weight for weight in self.weights}

    @cached_property
    def _by_key(self) -> dict[str, Weight]:
        return {weight.key: weight for weight in reversed(self.weights)}

    def weight(self, name: str) -> Weight:
        """The weight called `name` (with or without the base model's prefix). Raises CheckpointError when there is none."""
        found = self.find(name)
        if found is None:
            raise CheckpointError(f"{self.name} has no weight named {name!r}; `loraxs inspect {self.name}` lists them.")
        return found

    def find(self, name: str) -> Weight | None:
        """As `weight`, but None when there is none."""
        return self._by_name.get(name) or self._by_key.get(pattern_key(name))

    def entry(self, weight: Weight) -> TensorEntry:
        """The tensor behind `weight`. Raises WeightsMissing for an architecture without weights."""
        return self.stored(weight).entry

    def read(self, weight: Weight, *, check: bool = True) -> np.ndarray:
        """The matrix W0 (out x in), float32 or float64, never less than what is stored.

        Raises NonFiniteWeights naming the weight when it holds NaN or infinities and `check` is on.
        """
        return self.read_rows(weight, 0, weight.shape[0], check=check)

    def read_rows(self, weight: Weight, start: int, stop: int, *, check: bool = True) -> np.ndarray:
        """Rows `start` to `stop` of W0 (out x in), as `read`: memory holds these rows and no more (see `strips`)."""
        rows = self.strips(weight).rows(start, min(stop, weight.shape[0]))
        if check:
            self._check(weight, rows)
        return rows

    def strips(self, weight: Weight) -> Strips:
        """W0 (out x in) to be read a few rows or columns at a time, unchecked; decoded if it is stored quantised.

        Both directions cost the same, except that columns of a quantised matrix keep the decoded whole as long as the strips
        live. Raises WeightsMissing for an architecture without weights, CheckpointError for numbers nobody here can decode.
        """
        strips: Strips = self.stored(weight).matrix(weight.expert)
        if weight.transposed:
            strips = Transposed(strips)
        if weight.part:
            index = part_rows(_FUSED_ROLE[weight.part], weight.name.partition("[")[0], strips.shape[0], self._text_config)
            strips = SelectedRows(strips, index[weight.part])
        return strips

    def factors(self, weight: Weight) -> tuple[np.ndarray, np.ndarray] | None:
        """The pair (B, A), out x r and r x in, of a matrix W = B A that is stored as such (an adapter's update); None otherwise.

        Raises NonFiniteWeights naming the weight.
        """
        strips = self.stored(weight).matrix(weight.expert)
        if not isinstance(strips, Product):
            return None
        for factor in strips.factors:
            self._check(weight, factor)
        return strips.factors

    def parts(self, weight: Weight) -> list[Weight]:
        """The query, key and value (or gate and up) inside a fused projection, each a weight that can be read and scanned.

        Empty for a weight that is not fused, and where the layout of this architecture is not known (see `loraxs_core.fused`).
        """
        found = part_rows(weight.role, weight.name.partition("[")[0], weight.shape[0], self._text_config)
        return [
            dataclasses.replace(
                weight,
                name=f"{weight.name}[{part}]",
                role=PART_ROLES[part],
                kind="part",
                part=part,
                shape=(len(rows), weight.shape[1]),
            )
            for part, rows in found.items()
        ]

    @property
    def _text_config(self) -> dict:
        text = self.config.get("text_config")
        return text if isinstance(text, dict) else self.config

    def stored(self, weight: Weight) -> StoredTensor:
        """How the numbers of `weight` are stored. Raises WeightsMissing for an architecture without weights."""
        if not self.has_weights:
            raise WeightsMissing.of(self.name)
        return self.tensors[weight.tensor or self.weight(weight.tied_to or weight.name).tensor]

    def _untied(self, weight: Weight) -> Weight:
        """`weight`, or where the config ties it to another and the file holds other numbers: a matrix of its own, as transformers
        takes it."""
        tensor = f"{weight.name}.weight"
        if not weight.tied_to or tensor not in self.tensors:
            return weight
        own = dataclasses.replace(weight, tensor=tensor, tied_to=None)
        table = next(one for one in self.weights if one.name == weight.tied_to)
        return weight if self.same_numbers(own, table) else own

    def same_numbers(self, one: Weight, other: Weight) -> bool:
        """Whether two stored matrices of one shape hold the same numbers. Large ones are compared in 64 strips spread over them."""
        if one.shape != other.shape:
            return False
        left, right = self.strips(one), self.strips(other)
        rows, columns = one.shape
        step = max(1, _COMPARED // max(1, columns))
        starts = range(0, rows, step) if rows <= 64 * step else np.linspace(0, rows - step, 64).astype(int).tolist()
        return all(
            np.array_equal(
                left.rows(start, min(start + step, rows)), right.rows(start, min(start + step, rows)), equal_nan=True
            )
            for start in starts
        )

    def _check(self, weight: Weight, numbers: np.ndarray) -> None:
        finite = int(np.isfinite(numbers).sum())
        if finite < numbers.size:
            raise NonFiniteWeights(
                f"{weight.name} in {self.stored(weight).file.path.name} holds {numbers.size - finite:,} NaN or infinite numbers of "
                f"{numbers.size:,}; the checkpoint is damaged, download it again."
            )


def holds_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter and no model. Trainers put a config.json of the base beside an adapter's own."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    if not (folder / CONFIG).is_file():
        return True
    return not (folder / INDEX).is_file() and {path.name for path in folder.glob("*.safetensors")} <= {ADAPTER_FILE}


def is_bare(folder: Path) -> bool:
    """Whether `folder` holds a config.json and no weights in any format."""
    formats = ("*.safetensors", INDEX, "*.gguf", *PICKLES)
    return (folder / CONFIG).is_file() and not any(next(folder.glob(pattern), None) for pattern in formats)


def read_config(path: Path) -> dict:
    """A config.json as a dict; {} when there is none. Raises CheckpointError for what is not a JSON object."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON; download it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again.")
    return decoded_floats(config)


def decoded_floats(value: object):
    """`value` (of a JSON file) with ``{"__float__": "Infinity"}``, as transformers writes what JSON has no number for, as the number.

    >>> decoded_floats({"time_step_limit": [0.0, {"__float__": "Infinity"}]})
    {'time_step_limit': [0.0, inf]}
    """
    if isinstance(value, Mapping):
        written = value.get("__float__") if len(value) == 1 else None
        if written in ("Infinity", "-Infinity", "NaN"):
            return float(written)
        return {key: decoded_floats(one) for key, one in value.items()}
    return [decoded_floats(one) for one in value] if isinstance(value, list | tuple) else value


def tensors_of(names: Iterable[str], module: str) -> list[str]:
    """The tensors among `names` of the module called `module`, with or without the base model's prefix, or of all that end so.

    A part of a fused projection, ``c_attn[query]``, and one expert of a stack have the tensors of the whole, a quantised matrix
    also its scales. Biases are left out: no matrix needs them.

    >>> tensors_of(["model.h.0.up.weight", "model.h.0.up.bias", "h.10.up.weight", "experts.up_blocks", "cup.weight"], "h.0.up")
    ['model.h.0.up.weight']
    >>> tensors_of(["0.experts.up_blocks", "0.experts.up_scales", "0.experts.up_bias"], "experts.up[3]")
    ['0.experts.up_blocks', '0.experts.up_scales']
    """
    inside = re.compile(rf"\.{re.escape(pattern_key(module.partition('[')[0].removesuffix('.weight')))}[._]")
    return [name for name in names if inside.search(f".{name}.") and not name.endswith("bias")]


def _open_files(path: Path, module: str | None) -> dict[str, SafetensorsFile]:
    """Tensor name -> the file that holds it."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path} is not a safetensors file; only safetensors checkpoints are read.")
        return _by_tensor([SafetensorsFile(path)])
    if holds_adapter(path):
        raise CheckpointError(f"{path} is an adapter, not a model; give the base model it was trained on.")
    whole, index = path / "model.safetensors", path / INDEX
    if index.is_file() and not whole.is_file():  # transformers too takes the single file where there are both
        return _open_sharded(path, index, module)
    found = [whole] if whole.is_file() else sorted(path.glob("*.safetensors"))
    if found:
        _check_all_shards(path, found)
        return _by_tensor([SafetensorsFile(file) for file in found])
    if any(next(path.glob(pattern), None) for pattern in PICKLES):
        raise CheckpointError(
            f"{path} holds only pickled weights (.bin, .pt), which can run code when opened and are refused; "
            "convert them to safetensors first."
        )
    if any(path.glob("*.gguf")):
        raise CheckpointError(f"{path} holds only a GGUF file; dequantise it to safetensors first.")
    raise CheckpointError(f"{path} holds no safetensors files; give the folder that has model.safetensors in it.")


def _open_sharded(folder: Path, index: Path, module: str | None) -> dict[str, SafetensorsFile]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        wanted = {str(tensor): str(shard) for tensor, shard in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not a readable shard index; download it again.") from error
    if module is not None:
        wanted = {tensor: wanted[tensor] for tensor in tensors_of(wanted, module)}
    opened: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(wanted.values())):
        if Path(shard).name != shard or "\\" in shard or "\0" in shard:
            raise CheckpointError(f"{index} points outside its folder ({shard}); the checkpoint is refused.")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{index.name} names the shard {shard}, which is not in {folder}; finish the download.")
        opened[shard] = SafetensorsFile(folder / shard)
    for tensor, shard in wanted.items():
        if tensor not in opened[shard].entries:
            raise CheckpointError(f"{index.name} says {tensor!r} is in {shard}, and it is not there; download it again.")
    return {tensor: opened[shard] for tensor, shard in wanted.items()}


def _check_all_shards(folder: Path, found: list[Path]) -> None:
    """Without an index, the shards' own names (``model-00002-of-00003``) say how many there are."""
    for path in found:
        match = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})", path.stem)
        if match:
            there = len(list(folder.glob(f"{glob.escape(match[1])}-?????-of-{match[2]}.safetensors")))
            if there != int(match[2]):
                raise CheckpointError(
                    f"{folder} holds {there} of the {int(match[2])} shards of {match[1]}; finish the download."
                )


def _by_tensor(files: list[SafetensorsFile]) -> dict[str, SafetensorsFile]:
    tensors: dict[str, SafetensorsFile] = {}
    for file in files:
        for name in file.entries:
            if name in tensors:
                raise CheckpointError(
                    f"Tensor {name!r} is both in {tensors[name].path.name} and in {file.path.name}; keep one."
                )
            tensors[name] = file
    return tensors
