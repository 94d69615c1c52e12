"""Weight differences ΔW to be converted: from a LoRA adapter as its two factors, or a fine-tuned checkpoint minus its base.

Works on files, one module at a time; loads no model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError, CheckpointError, NonFiniteWeights
from loraxs_core.inventory import Weight, pattern_key
from loraxs_core.loading import PREFIX, AdapterFolder


@dataclass(frozen=True)
class LowRankDelta:
    """ΔW = left @ right: left (out x k), right (k x in), scaling included."""

    left: np.ndarray
    right: np.ndarray

    def project(self, U: np.ndarray, Vt: np.ndarray) -> np.ndarray:
        """Uᵀ ΔW V for orthonormal U (out x r) and Vt (r x in), without forming ΔW."""
        return (U.T @ self.left) @ (self.right @ Vt.T)

    def singular_values(self) -> np.ndarray:
        """Of ΔW, descending: those of the k x k core between the QR factors of `left` and `right`ᵀ."""
        core = np.linalg.qr(self.left, mode="r") @ np.linalg.qr(self.right.T, mode="r").T
        return np.linalg.svd(core, compute_uv=False)


@dataclass(frozen=True)
class DenseDelta:
    """ΔW (out x in) as a matrix."""

    matrix: np.ndarray

    def project(self, U: np.ndarray, Vt: np.ndarray) -> np.ndarray:
        """Uᵀ ΔW V for orthonormal U (out x r) and Vt (r x in)."""
        return U.T @ self.matrix @ Vt.T

    def singular_values(self) -> np.ndarray:
        """Of ΔW, descending."""
        from loraxs_core.svd import singular_values

        return singular_values(self.matrix)


@dataclass(frozen=True)
class DeltaSource:
    """Where differences come from: (weight of the base, a function that reads its ΔW), in the order of the inventory.

    adapter: the LoRA folder, or None for a fine-tuned checkpoint. label: what it is, in words.
    """

    label: str
    entries: tuple[tuple[Weight, Callable[[], LowRankDelta | DenseDelta]], ...]
    adapter: AdapterFolder | None = None

    def __iter__(self) -> Iterator[tuple[Weight, Callable[[], LowRankDelta | DenseDelta]]]:
        return iter(self.entries)


def lora_source(folder: str | Path, base: Checkpoint) -> DeltaSource:
    """The differences of a PEFT LoRA adapter, with rank_pattern, alpha_pattern and rsLoRA honoured.

    Raises AdapterError naming the reason for adapters whose ΔW is not (alpha/r) B A on this base: DoRA, trained biases, LoRA on
    embeddings, initialisations that change the base weights (PiSSA, OLoRA, CorDA, LoftQ), other methods, other shapes.
    """
    adapter = folder if isinstance(folder, AdapterFolder) else AdapterFolder(folder)
    _refuse(adapter)
    names = _lora_modules(adapter)
    by_key = {weight.key: weight for weight in base.weights}
    entries = []
    for module in names:
        weight = by_key.get(pattern_key(module))
        if weight is None:
            raise AdapterError(f"{adapter.path} adapts {module}, which {base.name} does not have; give the base it was trained on.")
        shapes = [adapter.file.entries[f"{PREFIX}{module}.lora_{part}.weight"].shape for part in "AB"]
        if len(shapes[0]) != 2 or len(shapes[1]) != 2 or (shapes[1][0], shapes[0][1]) != weight.shape or shapes[0][0] != shapes[1][1]:
            raise AdapterError(
                f"The adapter's {module} is for a weight of another shape than {weight.name} of {base.name} "
                f"({weight.shape[0]}x{weight.shape[1]}); give the base it was trained on."
            )
        entries.append((weight, _Factors(adapter, module)))
    order = {weight.name: index for index, weight in enumerate(base.weights)}
    entries.sort(key=lambda entry: order[entry[0].name])
    return DeltaSource(f"LoRA adapter {adapter.path.name}", tuple(entries), adapter)


def difference_source(tuned: Checkpoint, base: Checkpoint, weights: list[Weight]) -> DeltaSource:
    """The differences tuned - base of the given weights of `base`. Raises CheckpointError when the two do not match in shape."""
    entries = []
    for weight in weights:
        try:
            other = tuned.weight(weight.name)
        except CheckpointError as error:
            raise CheckpointError(f"{tuned.name} has no {weight.key}, so it is no fine-tune of {base.name}.") from error
        if other.shape != weight.shape:
            raise CheckpointError(
                f"{weight.key} is {other.shape[0]}x{other.shape[1]} in {tuned.name} and {weight.shape[0]}x{weight.shape[1]} in "
                f"{base.name}: not a fine-tune of it."
            )
        entries.append((weight, _Difference(tuned, other, base, weight)))
    return DeltaSource(f"{tuned.name} minus {base.name}", tuple(entries))


@dataclass(frozen=True)
class _Factors:
    adapter: AdapterFolder
    module: str

    def __call__(self) -> LowRankDelta:
        right, left = (
            self.adapter.file.read(f"{PREFIX}{self.module}.lora_{part}.weight").astype(np.float64) for part in "AB"
        )
        for matrix in (left, right):
            if not np.isfinite(matrix).all():
                raise NonFiniteWeights(f"The adapter's {self.module} holds NaN or infinite numbers; copy or train it again.")
        return LowRankDelta(left * _scaling(self.adapter.config, self.module, right.shape[0]), right)


@dataclass(frozen=True)
class _Difference:
    tuned: Checkpoint
    other: Weight
    base: Checkpoint
    weight: Weight

    def __call__(self) -> DenseDelta:
        return DenseDelta(self.tuned.read(self.other).astype(np.float64) - self.base.read(self.weight))


def _refuse(adapter: AdapterFolder) -> None:
    config, path = adapter.config, adapter.path
    if adapter.method != "LORA":
        raise AdapterError(f"{path} is a {adapter.method} adapter; LoRA adapters and fine-tuned checkpoints can be converted.")
    if config.get("use_dora"):
        raise AdapterError(f"{path} is a DoRA adapter: it rescales the rows of W0, so its change is not a matrix B A; merge it instead.")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path} trained biases (bias={config['bias']!r}), which a LoRA-XS adapter cannot hold; merge it instead.")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.split("_")[0].lower() in ("pissa", "olora", "corda", "loftq"):
        raise AdapterError(
            f"{path} was initialised by {start}, which changes the base weights too; save it as a plain LoRA first "
            "(PEFT's path_initial_model_for_weight_conversion)."
        )


def _lora_modules(adapter: AdapterFolder) -> list[str]:
    modules = []
    for key in adapter.file.entries:
        if "lora_embedding_" in key:
            raise AdapterError(f"{adapter.path} adapts an embedding ({key}); only linear layers can be converted.")
        if key.endswith(".lora_A.weight") and key.startswith(PREFIX):
            module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            if f"{PREFIX}{module}.lora_B.weight" not in adapter.file.entries:
                raise AdapterError(f"{adapter.path} has lora_A of {module} and no lora_B; copy the adapter again.")
            modules.append(module)
    if not modules:
        raise AdapterError(f"{adapter.path} holds no LoRA matrices (lora_A, lora_B).")
    return modules


def _scaling(config: dict, module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA; alpha_pattern keys match as PEFT matches them: at the end, at a dot."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
