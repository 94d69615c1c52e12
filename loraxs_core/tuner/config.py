"""What a LoRA-XS adapter is made of, as PEFT spells it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from peft.config import PeftConfig
from peft.utils import PeftType
from peft.utils.other import get_pattern_key

from loraxs_core.adapter_names import PEFT_TYPE
from loraxs_core.bases import SIGMAS, VECTORS
from loraxs_core.errors import AdapterError
from loraxs_core.tuner.saving import finish_folder

SAVE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class LoraXSConfig(PeftConfig):
    """Configuration of LoRA-XS (arXiv 2405.17604): ``W = W0 + (alpha / r) * B R A``, A and B frozen, R (r x r) trained.

    Args:
        r: rank, between 1 and min(out, in) of every target.
        alpha: the update is scaled by alpha / r. None means alpha = r, a scaling of 1.
        target_modules: module names, suffixes of them, a regular expression, or ``all-linear``. None takes what the paper adapts
            in this architecture, the same layers as the workbench's ``paper``.
        exclude_modules: names, suffixes or a regular expression of modules to leave alone.
        rank_pattern: module name, suffix or regular expression -> rank where it differs from `r`. alpha / r stays what it is
            without a pattern, so that every layer is scaled alike (PEFT's LoRA keeps alpha instead).
        alpha_pattern: likewise, -> alpha of those modules; their scaling is then alpha / their own rank.
        dropout: probability of dropping an input of the adapter. It makes autograd keep the input, which LoRA-XS otherwise
            does not need.
        vectors: which singular vectors: ``top`` (the paper), ``middle``, ``bottom``, or ``random`` orthonormal (its control).
        sigma: where the singular values sit: ``input`` (A = diag(S) V^T, as in the authors' code), ``output``, ``split``, ``none``.
        init_std: R ~ N(0, init_std^2); 1e-5 in the authors' code.
        init_weights: False starts R at N(0, 1 / r) instead, so that an untrained adapter does something (for tests).
        seed: of the random vectors; the adapter is bound to it.
        fan_in_fan_out: whether targets store (in, out); set automatically for transformers' Conv1D and nn.Linear.
        modules_to_save: modules trained and saved whole, such as a classification head.
        layers_to_transform, layers_pattern: restrict targets to these layer indices of this nn.ModuleList.
        save_dtype: what R is stored as: ``float32``, or ``bfloat16`` or ``float16`` for half the bytes. It trains in float32.
        save_bases: whether A and B go into the file too, in the precision they are held in: r * (in + out) numbers a module instead of
            none. Such an adapter loads without an SVD, on a base whose weights are elsewhere (offloaded, meta), and on one that moved.

    Raises AdapterError for values that make no sense.
    """

    r: int = field(default=16, metadata={"help": "Rank: R is r x r."})
    alpha: float | None = field(default=None, metadata={"help": "The update is scaled by alpha / r; None means alpha = r."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to adapt."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave alone."})
    rank_pattern: dict[str, int] | None = field(default_factory=dict, metadata={"help": "Module -> rank; alpha / r is kept."})
    alpha_pattern: dict[str, float] | None = field(default_factory=dict, metadata={"help": "Module -> alpha."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    vectors: Literal["top", "middle", "bottom", "random"] = field(default="top", metadata={"help": "Which singular vectors."})
    sigma: Literal["input", "output", "split", "none"] = field(
        default="input", metadata={"help": "Where the singular values sit."}
    )
    init_std: float = field(default=1e-5, metadata={"help": "Standard deviation of R at the start."})
    init_weights: bool = field(default=True, metadata={"help": "False: start R at N(0, 1 / r)."})
    seed: int = field(default=0, metadata={"help": "Seed of random vectors."})
    fan_in_fan_out: bool = field(default=False, metadata={"help": "Whether targets store (in, out)."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved whole."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layer indices to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the layers' nn.ModuleList."})
    save_dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "What R is stored as."})
    save_bases: bool = field(default=False, metadata={"help": "Whether A and B are stored beside R."})

    def __post_init__(self):
        super().__post_init__()
        from_file = self.peft_type is not None  # nothing else says its own method
        self.bases_follow = bool(self.save_bases) and from_file  # A and B come after it
        self.start_follows = False  # or from a start that is yet to be made (`gradient_start`), so that W0 needs no SVD
        if not from_file:
            self._check_layers()
        self.peft_type = PeftType.LORAXS
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        self.rank_pattern = dict(self.rank_pattern or {})
        self.alpha_pattern = dict(self.alpha_pattern or {})
        self._check()

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: object) -> dict:
        """What adapter_config.json holds, as PEFT's and with the method's name as `to_dict` has it."""
        held = super().from_json_file(path_json_file, **kwargs)
        return held | {"peft_type": PeftType.LORAXS} if held.get("peft_type") == PEFT_TYPE else held

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: object) -> None:
        """Writes adapter_config.json as PEFT does, and finishes the folder: the base by its hub id and never by a path, a method's name
        that tells a stranger what to install, and the card (`loraxs_core.tuner.saving`)."""
        super().save_pretrained(save_directory, **kwargs)
        finish_folder(Path(save_directory), self, self.common_scaling)

    def _check(self) -> None:
        ranks = {"r": self.r, **{f"rank_pattern[{key!r}]": rank for key, rank in self.rank_pattern.items()}}
        for what, rank in ranks.items():
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise AdapterError(f"LoraXSConfig: {what} must be a whole number of at least 1, not {rank!r}.")
        alphas = {"alpha": self.alpha, **{f"alpha_pattern[{key!r}]": alpha for key, alpha in self.alpha_pattern.items()}}
        for what, alpha in alphas.items():
            if alpha is not None and not _is_finite(alpha):
                raise AdapterError(f"LoraXSConfig: {what} must be a finite number, not {alpha!r}.")
        if not _is_finite(self.dropout) or not 0 <= self.dropout < 1:
            raise AdapterError(f"LoraXSConfig: dropout must be at least 0 and below 1, not {self.dropout!r}.")
        if not _is_finite(self.init_std) or self.init_std < 0:
            raise AdapterError(f"LoraXSConfig: init_std must be a finite number of at least 0, not {self.init_std!r}.")
        for what, value, known in (
            ("vectors", self.vectors, VECTORS),
            ("sigma", self.sigma, SIGMAS),
            ("save_dtype", self.save_dtype, SAVE_DTYPES),
        ):
            if value not in known:
                raise AdapterError(f"LoraXSConfig: {what} must be one of {', '.join(known)}, not {value!r}.")
        for what, named in (("target_modules", self.target_modules), ("exclude_modules", self.exclude_modules)):
            if named is not None and not isinstance(named, str) and (odd := [one for one in named if not isinstance(one, str)]):
                raise AdapterError(f"LoraXSConfig: {what} must hold names of modules, not {odd[0]!r}.")
        if not isinstance(self.save_bases, bool):
            raise AdapterError(f"LoraXSConfig: save_bases must be True or False, not {self.save_bases!r}.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise AdapterError(f"LoraXSConfig: seed must be a whole number, not {self.seed!r}.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise AdapterError("LoraXSConfig: layers_pattern needs layers_to_transform; give the layer indices to adapt.")

    def _check_layers(self) -> None:
        layers = self.layers_to_transform
        if layers is None:
            return
        each = layers if isinstance(layers, list | tuple | set | range) else [layers]
        if any(not isinstance(one, int) or isinstance(one, bool) for one in each):
            raise AdapterError(f"LoraXSConfig: layers_to_transform must be a layer's index or a list of them, not {layers!r}.")
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            raise AdapterError(
                f"LoraXSConfig: layers_to_transform would not be looked at beside the regular expression {self.target_modules!r}; say in "
                "it which layers are meant, or give target_modules as a list of names."
            )

    @property
    def alpha_over_r(self) -> float:
        """The scaling of every module without an alpha_pattern."""
        return 1.0 if self.alpha is None else self.alpha / self.r

    @property
    def common_scaling(self) -> float | None:
        """alpha / r where it is the same in every module, None with an alpha_pattern."""
        return None if self.alpha_pattern else self.alpha_over_r

    def rank_of(self, module: str) -> int:
        """The rank of the module with this name."""
        return self.rank_pattern.get(_pattern_for(self.rank_pattern, module), self.r)

    def scaling_of(self, module: str) -> float:
        """alpha / r of the module with this name."""
        key = _pattern_for(self.alpha_pattern, module)
        return self.alpha_pattern[key] / self.rank_of(module) if key in self.alpha_pattern else self.alpha_over_r


def common_rank(ranks: dict[str, int]) -> tuple[int, dict[str, int]]:
    """(the most frequent of `ranks` by module name, the modules that differ from it): `r` and `rank_pattern` of a configuration."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    return common, {name: rank for name, rank in ranks.items() if rank != common}


def _pattern_for(patterns: dict, module: str) -> str:
    """The key of `patterns` that PEFT would match to `module` (exact name, suffix at a dot, or regular expression)."""
    return get_pattern_key(patterns.keys(), module)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
