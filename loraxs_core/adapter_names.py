"""What the tensors of an adapter file are called, by whichever trainer wrote it, and which module of a model each belongs to.

PEFT writes ``base_model.model.<module>.lora_A.weight``. Other files hold the same numbers under other names, because the model
was wrapped when they were saved (torch.compile, DDP, FSDP, activation checkpointing), because another library saved them
(diffusers, kohya-ss), or because the model has been renamed since (``language_model``). What is known and has one meaning is read
here; the rest is left as it is, for `loraxs_core.account` to refuse. Works on strings; reads nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from loraxs_core.inventory import BASE_PREFIXES

PREFIX = "base_model.model."  # what PEFT puts before module names in an adapter file
LORAXS = "LORAXS"
# What a LoRA-XS adapter's file says its method is. PEFT looks the word up in a table, and where nothing registered LoRA-XS with it, all
# that the person sees is a KeyError with this word: so the word says what to do. It is for ever: other versions look it up too.
PEFT_TYPE = "LORAXS: pip install loraxs-workbench, then import loraxs_core.tuner"

# Modules that only wrap another one, wherever they stand: torch.compile; FSDP, old and new; activation checkpointing; Fabric.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"}
# Attributes under which the whole or the language part of a model hangs: they come and go with the head a model is loaded with,
# with the library that saved it (diffusers' unet, DDP's module) and with transformers' versions (language_model).
_ROOTS = {"base_model", "module", "language_model", "text_model", "unet", "text_encoder", "text_encoder_2", *BASE_PREFIXES}
# kohya-ss writes a module's whole path with underscores, behind the part of the pipeline it is in.
_KOHYA = re.compile(r"^lora_(?:unet|te\d?|transformer)_(?P<path>[^.]+)$")
# First words of the parameters that PEFT's methods add to a module (a test compares them with PEFT's own table).
_ADDED = re.compile(
    r"(?:adamss|adaption_prompt|beft|boft|c3a|cartridge|cpt|deft|delora|fourierft|frod|glora|gralora|hada|hira|hra|ia3|lily|ln_tuning|"
    r"lokr|lora|loraxs|miss|multitask_prompt_tuning|oft|osf|p_tuning|peanut|poly|prefix_tuning|prompt_tuning|psoft|pvera|randlora|"
    r"road|shadow|shira|supertuning|tinylora|trainable_tokens|unilora|vblora|vera|waveft|xlora)_"
)
_OTHER_FACTORS = {"lora_down": "lora_A", "lora_up": "lora_B", "lora.down": "lora_A", "lora.up": "lora_B"}
# PEFT's own modules between a module of the model and what it added to it.
_BETWEEN = {"base_layer", "token_adapter"}


def without_wrappers(name: str) -> str:
    """A key of a state dict, or a module's path, as it is called where nothing wraps the model.

    >>> without_wrappers("_fsdp_wrapped_module.base_model.model._orig_mod.h.0.q_proj.loraxs_R.default")
    'base_model.model.h.0.q_proj.loraxs_R.default'
    """
    return ".".join(token for token in name.split(".") if token not in _WRAPPERS)


def method_of(settings: Mapping) -> str:
    """PEFT's name of the method of an adapter_config.json, ``LORA`` or ``LORAXS``."""
    kind = str(settings.get("peft_type", ""))
    return LORAXS if kind == PEFT_TYPE else kind


@dataclass(frozen=True)
class TensorName:
    """Where a tensor of an adapter belongs. module: path of the module as the file has it, wrappers taken away.
    part: what it is of the module, as PEFT calls it: ``lora_A.weight``, ``weight`` of a module saved whole."""

    module: str
    part: str

    @property
    def plain(self) -> str:
        return f"{self.module}.{self.part}" if self.module else self.part


@dataclass(frozen=True)
class FileNames:
    """The tensors of one adapter file. keys: name as PEFT would have it (without its prefix) -> key in the file. names: the same
    names, taken apart. alphas: module -> key of the alpha that kohya-ss stores beside its factors. twice: keys whose name another
    key has already."""

    keys: dict[str, str] = field(default_factory=dict)
    names: dict[str, TensorName] = field(default_factory=dict)
    alphas: dict[str, str] = field(default_factory=dict)
    twice: tuple[str, ...] = ()

    @classmethod
    def of(cls, keys: Iterable[str]) -> FileNames:
        found, names, alphas, twice = {}, {}, {}, []
        for key in keys:
            name = read_name(key)
            if name.part == "alpha":
                alphas[name.module] = key
            elif name.plain in found:
                twice.append(key)
            else:
                found[name.plain], names[name.plain] = key, name
        return cls(found, names, alphas, tuple(twice))


def read_name(key: str) -> TensorName:
    """The module and the part that a key of an adapter file stands for.

    >>> read_name("base_model.model._orig_mod.h.0._fsdp_wrapped_module.q_proj.lora_A.default.weight")
    TensorName(module='h.0.q_proj', part='lora_A.weight')
    >>> read_name("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight")
    TensorName(module='lora_te_text_model_encoder_layers_0_self_attn_q_proj', part='lora_A.weight')
    >>> read_name("module.base_model.model.classifier.weight")
    TensorName(module='classifier', part='weight')
    """
    tokens = [token for token in key.split(".") if token not in _WRAPPERS]
    while tokens[:2] == ["module", "module"] or tokens[:2] == ["module", "base_model"]:
        tokens = tokens[1:]
    if tokens[:2] == ["base_model", "model"]:
        tokens = tokens[2:]
    start = next((i for i, token in enumerate(tokens) if i and (_ADDED.match(token) or token in _OTHER_FACTORS)), None)
    if start is None and "lora" in tokens[1:-1] and f"lora.{tokens[tokens.index('lora', 1) + 1]}" in _OTHER_FACTORS:
        start = tokens.index("lora", 1)  # attn.to_q.lora.down.weight of old diffusers
        tokens[start : start + 2] = [f"lora.{tokens[start + 1]}"]
    if start is None:
        # A module saved whole, or a bias; PEFT's own wrapper of it, with the adapter's name, may still be there.
        if len(tokens) > 2 and "modules_to_save" in tokens[1:-1]:
            at = tokens.index("modules_to_save", 1)
            tokens = tokens[:at] + tokens[at + 2 :]
        start = len(tokens) - 1
    module, part = tokens[:start], tokens[start:]
    part[0] = _OTHER_FACTORS.get(part[0], part[0])
    if len(part) > 1 and part[1] not in ("weight", "bias"):  # the adapter's own name, "default"
        part = [part[0], *part[2:]]
    if part == ["lora_magnitude_vector", "weight"]:
        part = part[:1]
    while len(module) > 1 and module[-1] in _BETWEEN:
        part = [module.pop(), *part]
    return TensorName(".".join(module), ".".join(part))


class ModulePaths:
    """The module paths of a model, found by the names that files give them."""

    def __init__(self, paths: Iterable[str]):
        self._paths = {path for path in paths if path}
        rooted, underscored = defaultdict(set), defaultdict(set)
        for path in self._paths:
            short = _without_roots(path)
            if short:
                rooted[short].add(path)
                for spelt in (path, short):
                    underscored[spelt.replace(".", "_")].add(path)
        self._rooted, self._underscored = rooted, underscored

    def __contains__(self, path: str) -> bool:
        return path in self._paths

    def find(self, path: str) -> str | None:
        """The module that `path` of a file means: itself, or the only one that has the same path below the model's root; None
        where there is none, or more than one."""
        if path in self._paths:
            return path
        if match := _KOHYA.match(path):
            spelt = match["path"]
            found = self._underscored.get(spelt) or self._underscored.get(_without_underscored_roots(spelt), set())
        else:
            found = self._rooted.get(_without_roots(path), set())
            if not found and "module" in path.split("."):  # DDP or DeepSpeed around an inner part
                found = self._rooted.get(_without_roots(".".join(one for one in path.split(".") if one != "module")), set())
        return next(iter(found)) if len(found) == 1 else None


def _without_roots(path: str) -> str:
    tokens = path.split(".")
    while tokens and tokens[0] in _ROOTS:
        tokens = tokens[1:]
    return ".".join(tokens)


def _without_underscored_roots(path: str) -> str:
    roots = sorted(_ROOTS, key=len, reverse=True)
    while root := next((root for root in roots if path.startswith(f"{root}_")), None):
        path = path[len(root) + 1 :]
    return path
