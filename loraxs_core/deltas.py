"""Weight updates as checkpoints: a fine-tune minus its base, and the update a LoRA adapter stands for.

Both have the interface of any `Checkpoint`, so whatever scans or lists a model does the same with an update.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from loraxs_core.adapter_names import FileNames, method_of
from loraxs_core.checkpoint import ADAPTER_FILE, Checkpoint, holds_adapter
from loraxs_core.errors import CheckpointError, ModelNotFound, WeightsMissing
from loraxs_core.inventory import TensorInfo, Weight, inventory
from loraxs_core.paths import user_path
from loraxs_core.safetensors_file import SafetensorsFile
from loraxs_core.strips import Product, Strips, Subtracted

# Ways of starting an adapter that take something out of the base weights, so that ΔW is not B A (PEFT, lora/layer.py); and which of
# them PEFT repeats to the same numbers when it loads the adapter.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_REPEATED = ("pissa", "olora")
_FACTORS = {"lora_A.weight": "A", "lora_B.weight": "B"}


def difference(minuend: Checkpoint, subtrahend: Checkpoint) -> Checkpoint:
    """`minuend` minus `subtrahend`, weight by weight: the real update of a fine-tune, read a strip at a time.

    Weights go together by name, whatever head each was saved with. What only one of them has, or has in another shape (a new
    classifier), is left out and counted in `note`. Raises WeightsMissing when one is an architecture without weights,
    CheckpointError when they have nothing in common.
    """
    for side in (minuend, subtrahend):
        if not side.has_weights:
            raise WeightsMissing(f"{side.name} is an architecture without weights; a difference needs the weights of both.")
    name = f"{minuend.name} minus {subtrahend.name}"
    weights, tensors = [], {}
    left_out = sum(1 for weight in subtrahend.weights if not weight.tied_to and minuend.find(weight.name) is None)
    for weight in minuend.weights:
        if weight.tied_to:
            continue
        other = subtrahend.find(weight.name)
        if other is None or other.shape != weight.shape:
            left_out += 1
            continue
        dtype = weight.dtype if weight.dtype == other.dtype else f"{weight.dtype} and {other.dtype}"
        weights.append(dataclasses.replace(weight, dtype=dtype, tensor=weight.name, expert=None, transposed=False, bias=False))
        tensors[weight.name] = _DifferenceTensor(minuend, weight, subtrahend, other)
    if not any(weight.is_linear for weight in weights):
        raise CheckpointError(f"{minuend.name} and {subtrahend.name} have no layer of the same name and shape in common.")
    what = "weight matrix is" if left_out == 1 else "weight matrices are"
    note = (
        f"{left_out} {what} not in both models, or not in the same shape, and left out of the difference." if left_out else ""
    )
    files = {f"{side} {tensor}": file for side, one in enumerate((minuend, subtrahend)) for tensor, file in one.files.items()}
    derivation = f"difference of {minuend.fingerprint} and {subtrahend.fingerprint}"
    return Checkpoint(name, minuend.config, weights, minuend.folder, files, tensors, note, derivation)


def open_adapter(path: str | os.PathLike, name: str | None = None) -> Checkpoint:
    """The update ΔW = scaling · B A of every layer of a LoRA adapter folder as PEFT saves it.

    `Checkpoint.factors` gives (scaling · B, A), from which its spectrum follows without forming ΔW. Scaling honours
    ``lora_alpha``, ``alpha_pattern`` and ``use_rslora`` as PEFT does, and kohya-ss's own alphas. What is not a product of two matrices (convolutions,
    embeddings, modules saved whole) is left out and counted in `note`. Raises CheckpointError for adapters whose update depends
    on the base model (DoRA, PiSSA, LoRA-XS, …) and for damaged ones.
    """
    folder = user_path(path)
    settings = _settings(folder)
    file_path = folder / ADAPTER_FILE
    if not file_path.is_file():
        raise CheckpointError(f"{folder} holds no adapter_model.safetensors; save the adapter again with PEFT.")
    file = SafetensorsFile(file_path)
    factors: dict[str, dict[str, str]] = {}
    names = FileNames.of(file.entries)
    for name, key in names.keys.items():
        if factor := _FACTORS.get(names.names[name].part):
            factors.setdefault(names.names[name].module, {})[factor] = key
    # On convolutions the factors are convolutions too.
    factors = {
        module: pair for module, pair in factors.items() if not all(len(file.entries[one].shape) > 2 for one in pair.values())
    }
    tensors = {
        f"{module}.weight": _LowRankTensor(file, module, pair, settings, names.alphas.get(module))
        for module, pair in factors.items()
    }
    # With no config to go by nothing counts as stored transposed, and a product never is.
    weights = inventory({key: TensorInfo(tensor.shape, tensor.dtype) for key, tensor in tensors.items()}, {})
    if not weights:
        raise CheckpointError(f"{file_path} holds no LoRA factors (lora_A, lora_B) of linear layers.")
    others = len(file.entries) - 2 * len(factors) - len(names.alphas.keys() & factors.keys())
    what = "embeddings, convolutions, biases, modules saved whole"
    note = f"{others} further tensors of the adapter ({what}) are not part of this." if others else ""
    derivation = json.dumps(settings, sort_keys=True, default=str)
    return Checkpoint(name or str(path), {}, weights, folder, dict.fromkeys(tensors, file), tensors, note, derivation)


def is_adapter(path: str | os.PathLike) -> bool:
    """Whether `path` is a folder that holds an adapter rather than a model."""
    return holds_adapter(user_path(path))


def changes_base(start: object) -> bool:
    """Whether ``init_lora_weights`` is one of those that change the base model's weights as well."""
    return isinstance(start, str) and start.lower().startswith(_CHANGES_BASE)


def lost_start(start: object) -> bool:
    """Whether ``init_lora_weights`` changes the base model's weights in a way that PEFT cannot find again on loading."""
    return changes_base(start) and start not in _REPEATED


class _DifferenceTensor:
    """Two weights of two checkpoints, as one tensor."""

    out_first = None

    def __init__(self, minuend: Checkpoint, weight: Weight, subtrahend: Checkpoint, other: Weight):
        self.sides = (minuend, weight), (subtrahend, other)
        self.file, self.entry = minuend.stored(weight).file, minuend.entry(weight)
        self.sources = (*minuend.stored(weight).sources, *subtrahend.stored(other).sources)
        self.shape, self.dtype = weight.shape, weight.dtype

    def matrix(self, expert: int | None) -> Strips:
        first, second = (checkpoint.strips(weight) for checkpoint, weight in self.sides)
        return Subtracted(first, second)


class _LowRankTensor:
    """The pair of factors of one module, as one tensor."""

    out_first = None

    def __init__(
        self, file: SafetensorsFile, module: str, pair: Mapping[str, str], settings: Mapping, alpha: str | None = None
    ):
        """alpha: key of the tensor that says it, in kohya-ss's files; there the scaling is alpha / rank whatever the config says."""
        if set(pair) != {"A", "B"}:
            raise CheckpointError(f"{file.path} holds only lora_{next(iter(pair))} of {module}; save the adapter again.")
        down, up = file.entries[pair["A"]], file.entries[pair["B"]]
        if len(down.shape) != 2 or len(up.shape) != 2 or up.shape[1] != down.shape[0]:
            raise CheckpointError(
                f"{file.path.name}: lora_B {list(up.shape)} and lora_A {list(down.shape)} of {module} are not the factors of a matrix."
            )
        if not (file.is_float(pair["A"]) and file.is_float(pair["B"])):
            raise CheckpointError(
                f"{file.path.name}: the factors of {module} are not floating-point numbers; save the adapter again."
            )
        self.file, self.entry, self.pair, self.sources = file, up, pair, (file,)
        self.shape, self.dtype = (up.shape[0], down.shape[1]), up.torch_dtype
        self.scaling = float(file.read(alpha)) / down.shape[0] if alpha else _scaling(module, down.shape[0], settings)

    def matrix(self, expert: int | None) -> Product:
        up, down = self.file.read(self.pair["B"]), self.file.read(self.pair["A"])
        return Product(up * up.dtype.type(self.scaling), down)


def _settings(folder: Path) -> dict:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ModelNotFound(f"There is no adapter in {folder} (no adapter_config.json); check the path.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON; save the adapter again.") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is not a JSON object; save the adapter again.")
    kind, start = method_of(settings), settings.get("init_lora_weights")
    if kind == "LORA" and changes_base(start):
        raise CheckpointError(
            f"{folder} was initialised by {start}, which changes the base weights too, so its update cannot be read from it alone; "
            "save it as a plain LoRA first (PEFT's path_initial_model_for_weight_conversion)."
        )
    variants = {"use_dora": "DoRA", "use_qalora": "QA-LoRA", "use_bdlora": "BD-LoRA", "target_parameters": "LoRA on parameters"}
    variant = next((what for setting, what in variants.items() if settings.get(setting)), None)
    if kind != "LORA" or variant:
        what = variant if kind == "LORA" else str(kind)
        raise CheckpointError(
            f"{folder} is a {what} adapter; only plain LoRA's update can be read without its base model: merge it, and compare "
            "the result with its base."
        )
    return settings


def _scaling(module: str, rank: int, settings: Mapping) -> float:
    """alpha / r, or alpha / sqrt(r), with the alpha whose pattern matches the module as PEFT matches it."""
    alpha = settings.get("lora_alpha", 8)
    patterns = settings.get("alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise CheckpointError(
                f"The adapter's alpha_pattern {pattern!r} is not a pattern; save the adapter again."
            ) from error
        if matches:
            alpha = value
            break
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise CheckpointError(f"The adapter's lora_alpha {alpha!r} of {module} is not a number; save the adapter again.")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank) if rank else 0.0
