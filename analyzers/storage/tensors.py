"""The tensors that `save_pretrained` writes for an adapter: names, shapes and dtypes, without any weights.

Every method of the registry follows a rule short enough to state, and answers at once. With options that its rule does not
know, PEFT is asked: it builds the adapter on the meta device, and its own `get_peft_model_state_dict` says what would be
saved. That takes seconds on a large model.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from analyzers.methods import AdapterSpec, peft_config
from analyzers.precision import kept_in_fp32
from analyzers.storage.layout import Tensor
from loraxs_core.architecture import OWN, meta_model, model_tensors
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError

# What PEFT adds to modules_to_save by itself for these task types (PeftModelForSequenceClassification and its kin).
HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}

PREFIX = "base_model.model."

LORA_FAMILY = ("lora", "rslora", "dora", "pissa")  # all of PEFT's type LORA


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


def rank_of(spec: AdapterSpec, name: str) -> int:
    """The rank PEFT gives to the module called `name`: the first ``rank_pattern`` key that matches its end at a dot, else `rank`."""
    for pattern, rank in spec.ranks.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return rank
    return spec.rank


def adapter_tensors(checkpoint: Checkpoint, spec: AdapterSpec, modules: list[Module], dtype: str, task: str | None) -> Saved:
    """The adapter's own tensors (no heads). dtype: of the saved adapter. task: decides the model class that PEFT wraps.

    Raises SettingsError for a method that PEFT cannot build on the meta device.
    """
    rule, known_options = RULES.get(spec.method, (None, frozenset()))
    if spec.method not in ON_EMBEDDINGS and any(module.kind == "embedding" for module in modules):
        rule = None
    if rule is not None and set(spec.options) <= known_options:
        return rule(spec, modules, dtype)
    return _traced(_Question(repr((checkpoint.fingerprint, spec, dtype, task)), checkpoint, spec, dtype, task))


def head_tensors(
    checkpoint: Checkpoint, task: str | None, modules_to_save: tuple[str, ...], dtype: str, prefix: str = PREFIX
) -> dict[str, Tensor]:
    """Tensors of the modules that are trained and saved whole, under the keys PEFT gives them: the user's and the task's head.

    modules_to_save: as PEFT matches them, by the end of the module's path. Raises SettingsError when one matches nothing.
    """
    heads = HEADS.get(task or "", ())
    if not modules_to_save and not heads:
        return {}
    paths, state = _inside(_Class(checkpoint.fingerprint, task or OWN, checkpoint))
    fp32 = fp32_paths(checkpoint, task, dtype)
    found: dict[str, Tensor] = {}
    for target in (*modules_to_save, *heads):
        matches = [path for path in paths if path.endswith(target)]
        if not matches and target not in heads:
            raise SettingsError(f"No module of {checkpoint.name} ends in {target!r}, so it cannot be saved with the adapter.")
        for path in matches:
            for key, shape in state.items():
                if key.startswith(f"{path}."):
                    found[f"{prefix}{key}"] = Tensor(shape, "float32" if fp32(key) else dtype)
    return found


def base_copies(checkpoint: Checkpoint, targets: Sequence[str], paths: Collection[str], dtype: str, task: str | None) -> dict:
    """Key -> `Tensor` of the base's own embedding and head that PEFT writes into the adapter when they are among the targets.

    Its ``save_embedding_layers="auto"`` does so where ``target_modules`` (`targets`) names one as PEFT's list of embedding layers
    does; ``save_pretrained(..., save_embedding_layers=False)`` leaves them out. paths: of the adapted modules.
    """
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    if not set(targets) & set(EMBEDDING_LAYER_NAMES):
        return {}
    own = _Class(checkpoint.fingerprint, task or OWN, checkpoint)
    fp32 = fp32_paths(checkpoint, task, dtype)
    return {
        f"{PREFIX}{path}.base_layer.{key.removeprefix(path + '.')}": Tensor(shape, "float32" if fp32(key) else dtype)
        for path in _vocabulary_layers(own)
        if path in paths
        for key, shape in _inside(own)[1].items()
        if key.startswith(f"{path}.")
    }


@dataclass(frozen=True)
class _Class:
    """A checkpoint loaded with one class of model; equal when both are."""

    fingerprint: str
    task: str
    checkpoint: Checkpoint = field(compare=False)


def fp32_paths(checkpoint: Checkpoint, task: str | None, dtype: str) -> Callable[[str], bool]:
    """Whether transformers keeps the module or weight of that path in float32 when the model is loaded in `dtype`."""
    if dtype not in ("float16", "bfloat16") or not checkpoint.model_type:
        return lambda path: False
    return _fp32_paths(_Class(checkpoint.fingerprint, task or OWN, checkpoint), dtype)


@lru_cache(maxsize=32)
def _fp32_paths(model: _Class, dtype: str) -> Callable[[str], bool]:
    import torch

    return kept_in_fp32(meta_model(model.checkpoint, model.task), getattr(torch, dtype))


@lru_cache(maxsize=16)
def _vocabulary_layers(model: _Class) -> tuple[str, ...]:
    """The paths of the input embedding and of the head, as far as the class says which they are."""
    made = meta_model(model.checkpoint, model.task)
    found = []
    for get in (made.get_input_embeddings, made.get_output_embeddings):
        try:
            layer = get()
        except (NotImplementedError, AttributeError):
            continue
        found.extend(path for path, module in made.named_modules() if module is layer)
    return tuple(found)


@lru_cache(maxsize=16)
def _inside(model: _Class) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """The paths of a model's modules, and the shapes in its ``state_dict``."""
    made = meta_model(model.checkpoint, model.task)
    paths = tuple(path for path, _ in made.named_modules() if path)
    return paths, {key: tuple(tensor.shape) for key, tensor in made.state_dict().items()}


def whole_model(checkpoint: Checkpoint, dtype: str, task: str | None) -> Saved:
    """Every tensor of the model in one file, tied ones once, as transformers' save_pretrained writes a fine-tuned copy.

    Floating-point tensors in `dtype`, others as they are."""
    fp32 = fp32_paths(checkpoint, task, dtype)
    tensors = {
        key: Tensor(shape, ("float32" if fp32(key) else dtype) if "float" in own else own)
        for key, (shape, own) in _written(_Class(checkpoint.fingerprint, task or OWN, checkpoint)).items()
    }
    return Saved(tensors, tuple(tensors.values()))


@lru_cache(maxsize=16)
def _written(model: _Class) -> dict[str, tuple[tuple[int, ...], str]]:
    """Key -> shape and dtype of what save_pretrained of the model itself writes."""
    return {
        key: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for key, tensor in model_tensors(model.checkpoint, model.task).items()
    }


def _lora(spec: AdapterSpec, modules: list[Module], dtype: str) -> Saved:
    tensors = {}
    for module in modules:
        own = module.dtype(dtype)
        if module.kind == "embedding":
            tensors[f"{PREFIX}{module.path}.lora_embedding_A"] = Tensor((module.rank, module.out), own)
            tensors[f"{PREFIX}{module.path}.lora_embedding_B"] = Tensor((module.inner, module.rank), own)
            continue
        tensors[f"{PREFIX}{module.path}.lora_A.weight"] = Tensor((module.rank, module.inner), own)
        tensors[f"{PREFIX}{module.path}.lora_B.weight"] = Tensor((module.out, module.rank), own)
    return Saved(tensors, tuple(tensors.values()))


def _dora(spec: AdapterSpec, modules: list[Module], dtype: str) -> Saved:
    """LoRA's two and a magnitude for each output feature."""
    tensors = dict(_lora(spec, modules, dtype).tensors)
    for module in modules:
        tensors[f"{PREFIX}{module.path}.lora_magnitude_vector"] = Tensor((module.out,), module.dtype(dtype))
    return Saved(tensors, tuple(tensors.values()))


def _ia3(spec: AdapterSpec, modules: list[Module], dtype: str) -> Saved:
    """A scale for each output feature; no module counts as feed-forward here (see `analyzers.methods`)."""
    tensors = {f"{PREFIX}{module.path}.ia3_l": Tensor((module.out, 1), module.dtype(dtype)) for module in modules}
    return Saved(tensors, tuple(tensors.values()))


def _vera(spec: AdapterSpec, modules: list[Module], dtype: str) -> Saved:
    """Two vectors a module; with ``save_projection`` (PEFT's default) also the shared A (r x widest in) and B (widest out x r)."""
    tensors = {}
    for module in modules:
        tensors[f"{PREFIX}{module.path}.vera_lambda_b"] = Tensor((module.out,), module.dtype(dtype))
        tensors[f"{PREFIX}{module.path}.vera_lambda_d"] = Tensor((spec.rank,), module.dtype(dtype))
    trained = tuple(tensors.values())
    shared = modules[-1].dtype(dtype)  # PEFT moves them to the precision of each module in turn
    projections = {
        "base_model.vera_A": Tensor((spec.rank, max(module.inner for module in modules)), shared),
        "base_model.vera_B": Tensor((max(module.out for module in modules), spec.rank), shared),
    }
    if spec.options.get("save_projection", True):
        tensors |= projections
    return Saved(tensors, trained, sum(tensor.numbers for tensor in projections.values()))


def _lora_xs(spec: AdapterSpec, modules: list[Module], dtype: str) -> Saved:
    """R (r x r) a module, trained in float32 however it is saved, and the tuner's proof of the bases."""
    from loraxs_core.tuner import saved_tensors

    shapes = {module.path: (module.out, module.inner, module.rank) for module in modules}
    config = peft_config(dataclasses.replace(spec, options={**spec.options, "save_dtype": dtype}))
    tensors = {key: Tensor(tuple(shape), stored) for key, (shape, stored) in saved_tensors(shapes, config).items()}
    frozen = sum(module.rank * (module.inner + module.out) for module in modules)
    return Saved(tensors, tuple(Tensor((module.rank, module.rank)) for module in modules), frozen)


def _tinylora(spec: AdapterSpec, modules: list[Module], dtype: str) -> Saved:
    """A (r x in), B (out x r) and, with ``save_projection`` (PEFT's default), P (u x r x r) a module; and the trained vectors
    of u numbers: one a module, or one a group of modules with ``weight_tying``. A rank beyond a matrix's own is cut down to
    it."""
    length = int(spec.options.get("u", 64))
    frozen = {}
    for module in modules:
        rank, own = min(module.rank, module.out, module.inner), module.dtype(dtype)
        frozen[f"{PREFIX}{module.path}.tinylora_A"] = Tensor((rank, module.inner), own)
        frozen[f"{PREFIX}{module.path}.tinylora_B"] = Tensor((module.out, rank), own)
        frozen[f"{PREFIX}{module.path}.tinylora_P"] = Tensor((length, rank, rank), own)
    groups = max(1, round(len(modules) * (1 - spec.options.get("weight_tying", 0.0))))
    groups = min(groups, -(-len(modules) // max(1, len(modules) // groups)))  # PEFT fills groups of n // groups modules in turn
    shared = modules[-1].dtype(dtype)  # as with VeRA's projections
    vectors = {f"base_model.tinylora_v.{index}": Tensor((length,), shared) for index in range(groups)}
    kept = frozen if spec.options.get("save_projection", True) else {key: one for key, one in frozen.items() if key[-1] != "P"}
    return Saved({**kept, **vectors}, tuple(vectors.values()), sum(tensor.numbers for tensor in frozen.values()))


def _psoft(spec: AdapterSpec, modules: list[Module], dtype: str) -> Saved:
    """The r (r - 1) / 2 free numbers of a rotation (r x r without ``psoft_orth``) and two vectors of magnitudes; A and B are
    rebuilt from the base. Raises SettingsError for GPT-2's Conv1D, which PEFT's PSOFT does not know."""
    for module in modules:
        if module.kind == "conv1d":
            raise SettingsError(f"PEFT cannot lay out psoft on {module.path}: it is a Conv1D, and psoft takes nn.Linear only.")
    orthogonal, *magnitudes = (spec.options.get(f"psoft_{name}", True) for name in ("orth", "mag_a", "mag_b"))
    tensors = {}
    for module in modules:
        rank, own = module.rank, module.dtype(dtype)
        rotation = (rank * (rank - 1) // 2,) if orthogonal else (rank, rank)
        tensors[f"{PREFIX}{module.path}.psoft_R.weight"] = Tensor(rotation, own)
        for name in itertools.compress(("vector_a", "vector_b"), magnitudes):
            tensors[f"{PREFIX}{module.path}.psoft_R.{name}"] = Tensor((rank,), own)
    return Saved(tensors, tuple(tensors.values()), sum(module.rank * (module.inner + module.out) for module in modules))


ON_EMBEDDINGS = ("lora", "rslora", "lora-xs")  # whose rules know embeddings; PEFT is asked about the others

# The rule of a method, and the options of its configuration that the rule takes into account or that change no tensor.
RULES: dict[str, tuple[Callable[[AdapterSpec, list[Module], str], Saved], frozenset[str]]] = {
    "lora": (_lora, frozenset()),
    "rslora": (_lora, frozenset()),
    "pissa": (_lora, frozenset()),
    "dora": (_dora, frozenset()),
    "ia3": (_ia3, frozenset()),
    "vera": (_vera, frozenset({"save_projection"})),
    "lora-xs": (_lora_xs, frozenset({"vectors", "sigma", "init_std", "seed", "save_dtype"})),
    "tinylora": (
        _tinylora,
        frozenset({"u", "weight_tying", "save_projection", "projection_seed", "init_v_bound", "tinylora_dropout"}),
    ),
    "psoft": (_psoft, frozenset({"psoft_orth", "psoft_mag_a", "psoft_mag_b", "psoft_svd", "ab_svd_init", "random_seed"})),
}


@dataclass(frozen=True)
class _Question:
    """What is asked of PEFT; equal when `text` is, so that an answer is found again."""

    text: str
    checkpoint: Checkpoint = field(compare=False)
    spec: AdapterSpec = field(compare=False)
    dtype: str = field(compare=False)
    task: str | None = field(compare=False)


@lru_cache(maxsize=64)
def _traced(question: _Question) -> Saved:
    """The adapter built by PEFT on the meta device, and what PEFT would save of it."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict

    spec = dataclasses.replace(question.spec, task_type=None, modules_to_save=None)  # heads are counted by `head_tensors`
    model = meta_model(question.checkpoint, question.task or OWN)
    own = _float_numbers(model)
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, peft_config(spec))
            state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            f"PEFT cannot lay out {spec.method} on {question.checkpoint.name} without its weights, so its size is not known: {reason}"
        ) from error
    tensors = {
        key: Tensor(
            tuple(tensor.shape), question.dtype if tensor.dtype.is_floating_point else str(tensor.dtype).removeprefix("torch.")
        )
        for key, tensor in state.items()
    }
    trained = tuple(
        Tensor(tuple(parameter.shape), question.dtype) for parameter in adapted.parameters() if parameter.requires_grad
    )
    return Saved(tensors, trained, shared=_float_numbers(adapted) - own - sum(tensor.numbers for tensor in trained))


def _float_numbers(model) -> int:
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
