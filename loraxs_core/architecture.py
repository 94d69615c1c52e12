"""Models without weights: the inventory of a transformers config, and where a checkpoint's matrices sit inside a loaded model.

The model is built by transformers itself on the meta device: every shape, no memory. Only classes that transformers ships are
built; code beside a checkpoint is run only where the caller says ``trust_remote_code`` (see `loraxs_core.remote_code`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_core import remote_code
from loraxs_core.checkpoint import Checkpoint, decoded_floats
from loraxs_core.config_bounds import few_modules, refuse_impossible
from loraxs_core.errors import CheckpointError, SettingsError, one_line
from loraxs_core.inventory import TensorInfo, Weight, inventory, pattern_key
from loraxs_core.placement import ConvertedTensor, Placement, Source
from loraxs_core.roles import layer_of, role_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# PEFT's task types and the transformers class that serves each; None is the bare model.
AUTO_CLASSES = {
    None: "AutoModel",
    "FEATURE_EXTRACTION": "AutoModel",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
OWN = "own"  # the class that the checkpoint itself names in `architectures`


def inventory_from_config(config: Mapping | PretrainedConfig, name: str) -> Checkpoint:
    """The inventory of an architecture without weights, equal to that of a checkpoint saved by transformers.

    config: a config.json as a dict, or transformers' own. Names and shapes are those of a saved checkpoint: the class named in
    ``architectures`` (the bare model when there is none), tied weights once, mixtures of experts as their checkpoints spell
    them. Raises CheckpointError when transformers does not know the architecture or refuses the values.
    """
    raw = decoded_floats(dict(config) if isinstance(config, Mapping) else config.to_dict())
    refuse_impossible(raw, name)
    if remote_code.needs_code(raw):
        raise CheckpointError(
            f"{name} is a {str(raw.get('model_type'))!r} model, which transformers knows only through Python code of its own, so its "
            "config alone does not tell its weights; give a folder that holds its safetensors files and that code."
        )
    settings = _transformers_config(raw, name)
    with _quiet(name):
        model = _build(_model_class(settings, raw), settings)
        tensors = _saved_tensors(model, head_is_tied=raw.get("tie_word_embeddings") is not False)
    dtype = str(settings.dtype or "float32").removeprefix("torch.")
    infos = {key: TensorInfo(tuple(tensor.shape), dtype) for key, tensor in tensors.items()}
    return Checkpoint(name=name, config=raw, weights=inventory(infos, raw | {"architectures": [type(model).__name__]}))


def model_config(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """transformers' config of a checkpoint, with the defaults its config.json leaves out. Raises CheckpointError."""
    return _transformers_config(checkpoint.config, checkpoint.name, checkpoint.folder if trust_remote_code else None)


def meta_model(
    checkpoint: Checkpoint, task: str | None = None, *, trust_remote_code: bool = False, **settings: Any
) -> PreTrainedModel:
    """The transformers model of a checkpoint on the meta device: every module and shape, no numbers, no memory.

    task: PEFT's task type (see `AUTO_CLASSES`), or `OWN`. trust_remote_code: whether the Python code in the checkpoint's folder may
    be run, where transformers does not know the architecture without it. settings: values of the config to replace, such as
    ``num_labels=3``. Raises SettingsError when transformers has no such head for this architecture, CheckpointError when it does
    not know it at all.
    """
    import transformers

    if task != OWN and task not in AUTO_CLASSES:
        raise SettingsError(f"Unknown task type {task!r}; there are {', '.join(str(one) for one in AUTO_CLASSES if one)}.")
    trusted = checkpoint.folder if trust_remote_code else None
    config = _transformers_config(checkpoint.config | settings, checkpoint.name, trusted)
    if trusted and remote_code.needs_code(checkpoint.config):
        auto_class = None if task == OWN else AUTO_CLASSES[task]
        with _quiet(checkpoint.name):
            return _build(remote_code.own_model_class(checkpoint.config, trusted, checkpoint.name, auto_class), config)
    if task == OWN:
        with _quiet(checkpoint.name):
            return _build(_model_class(config, checkpoint.config), config)
    auto = getattr(transformers, AUTO_CLASSES[task])
    try:
        model_class = auto._model_mapping[type(config)]
    except KeyError:
        raise SettingsError(
            f"transformers has no {AUTO_CLASSES[task].removeprefix('Auto')} for {checkpoint.model_type} models such as "
            f"{checkpoint.name}; choose another task."
        ) from None
    if isinstance(model_class, (list, tuple)):
        model_class = model_class[0]
    with _quiet(checkpoint.name):
        return _build(model_class, config)


def own_class(checkpoint: Checkpoint) -> type[PreTrainedModel]:
    """The class that `meta_model` builds for `OWN`, without building it. Raises CheckpointError."""
    return _model_class(model_config(checkpoint), checkpoint.config)


def model_tensors(checkpoint: Checkpoint, task: str | None = OWN) -> dict:
    """Checkpoint key -> meta tensor of everything that save_pretrained of the model itself would write, tied weights once."""
    return _saved_tensors(meta_model(checkpoint, task), head_is_tied=checkpoint.config.get("tie_word_embeddings") is not False)


def as_loaded(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with the matrices that its transformers class holds in memory: what an adapter can be planned for.

    A matrix that is only called differently in memory keeps its name in the file (see `module_names`). What transformers takes
    apart or puts together on load is listed, and read, as the modules it becomes, under their paths in memory; what is in no
    module (layers stored behind the last one) is left out, and `note` says so and nothing else. Tied is what transformers ties: two stored
    matrices that differ are not, whatever the config says. The checkpoint itself where there is nothing to change, or where
    transformers does not know the architecture.
    """
    if checkpoint.as_stored is not None or not checkpoint.model_type or checkpoint.derivation:
        return checkpoint
    try:
        return _as_loaded(_asked(checkpoint, OWN))
    except (CheckpointError, SettingsError):
        return checkpoint


def left_out(checkpoint: Checkpoint) -> str:
    """What of the file is in no module of the model, in one sentence; empty where everything has its place."""
    loaded = as_loaded(checkpoint)
    return loaded.note if loaded.as_stored is not None else ""


def module_names(checkpoint: Checkpoint, task: str | None = None) -> dict[str, str]:
    """`Weight.name` -> the path of its module inside the model that the auto class of `task` loads.

    For the weights of `checkpoint` and of `as_loaded`. Follows transformers' own renaming on load: the base model's prefix comes
    or goes (``encoder.layer.0…`` -> ``bert.encoder.layer.0…``) and some architectures have other names in memory than on disk
    (ViT, Gemma 3 with images). Weights without a module of their own there (experts fused into one parameter, heads this model
    does not have) are left out.
    """
    paths = _placement(_asked(checkpoint, task)).paths
    own = _placement(_asked(checkpoint, OWN))
    found = {}
    for weight in (*checkpoint.weights, *as_loaded(checkpoint).weights):
        if weight.kind == "parameter" or weight.expert is not None:
            continue
        source = own.sources[f"{weight.name}.weight"] if weight.name in own.made else Source(_key(weight))
        if source in paths:
            found[weight.name] = paths[source]
    return found


def module_keys(checkpoint: Checkpoint) -> dict[str, str]:
    """`Weight.name` -> the end of its module's path in memory that is the same under any head: what PEFT's patterns should say.

    It is `Weight.key` but for architectures that transformers renames on load, and for those that it does not know.
    """
    try:
        paths = module_names(checkpoint, OWN)
    except (CheckpointError, SettingsError):
        paths = {}
    names = {weight.name for weight in (*checkpoint.weights, *as_loaded(checkpoint).weights)}
    return {name: pattern_key(paths.get(name, name)) for name in names}


def weight_of_module(checkpoint: Checkpoint, path: str, task: str | None = None) -> tuple[Checkpoint, Weight]:
    """(the checkpoint to read from, the weight) of the module that has `path` in memory, as an adapter's file names it.

    task: PEFT's task type of the adapter, whose class is looked into first; then the checkpoint's own class and the bare model,
    with and without the base model's prefix; then, as for a folder without config.json, the names of the file.
    Raises CheckpointError when there is none.
    """
    loaded = as_loaded(checkpoint)
    for one in dict.fromkeys((task, OWN, None)):
        try:
            names = _by_path(_asked(checkpoint, one))
        except (CheckpointError, SettingsError):
            continue
        if path in names:
            return loaded, loaded.weight(names[path])
    return loaded, loaded.weight(path)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What was asked about a checkpoint; equal when model, task and inventory are."""

    fingerprint: str
    task: str | None
    weights: int
    checkpoint: Checkpoint = dataclasses.field(compare=False)


def _asked(checkpoint: Checkpoint, task: str | None) -> _Asked:
    checkpoint = checkpoint.as_stored or checkpoint
    return _Asked(checkpoint.fingerprint, task, hash(tuple(checkpoint.weights)), checkpoint)


@lru_cache(maxsize=32)
def _placement(asked: _Asked) -> Placement:
    checkpoint = asked.checkpoint
    shapes = {_key(weight): _stored_shape(weight) for weight in checkpoint.weights}
    shapes |= {key: tensor.shape for key, tensor in checkpoint.tensors.items()}
    return Placement(meta_model(checkpoint, asked.task), shapes)


@lru_cache(maxsize=32)
def _by_path(asked: _Asked) -> dict[str, str]:
    """Module path -> weight name, with and without the prefix of the base model."""
    prefix = f"{_placement(asked).model.base_model_prefix}."
    exact = {path: name for name, path in module_names(asked.checkpoint, asked.task).items()}
    bare = {path.removeprefix(prefix): name for path, name in exact.items()}
    return {f"{prefix}{path}": name for path, name in bare.items()} | bare | exact


def _key(weight: Weight) -> str:
    """The tensor of the file that holds `weight`, or would if it were not tied."""
    return weight.tensor or f"{weight.name}.weight"


def _stored_shape(weight: Weight) -> tuple[int, ...] | None:
    if weight.expert is not None:
        return None
    return weight.shape[::-1] if weight.transposed else weight.shape


@lru_cache(maxsize=32)
def _as_loaded(asked: _Asked) -> Checkpoint:
    checkpoint, placement = asked.checkpoint, _placement(asked)
    weights: dict[str, Weight] = {}  # by parameter in memory, or by name where there is none
    left_out: list[Weight] = []
    for weight in checkpoint.weights:
        key = _key(weight)
        if key in placement.becomes:
            weights |= {path: _converted(placement, path, weight) for path in placement.becomes[key] if path not in weights}
        elif key in placement.left_out and weight.layer is not None:
            left_out.append(weight)
        else:
            parameter = placement.by_tensor.get(key)
            if parameter and weight.role == "other":  # names of the file that only transformers understands (Inkling's wq_du)
                weight = dataclasses.replace(weight, role=role_of(parameter.removesuffix(".weight")))
            weights[parameter if parameter and weight.expert is None else weight.name] = weight
    if len(left_out) == sum(weight.layer is not None for weight in checkpoint.weights):
        return checkpoint  # names of which transformers understands none
    weights = _as_tied(checkpoint, placement, weights)
    if list(weights.values()) == checkpoint.weights:
        return checkpoint
    made = {
        path: ConvertedTensor(placement, path, checkpoint.tensors) for path in placement.converted if checkpoint.has_weights
    }
    note = _left_out_note(left_out, type(placement.model).__name__)
    return dataclasses.replace(
        checkpoint, weights=list(weights.values()), tensors=checkpoint.tensors | made, note=note, as_stored=checkpoint
    )


def _converted(placement: Placement, parameter: str, source: Weight) -> Weight:
    """The weight that transformers makes under the name `parameter`, of `source` and perhaps others."""
    name = parameter.removesuffix(".weight")
    kind = "conv1d" if name in placement.conv1d else "embedding" if name in placement.embeddings else "linear"
    shape = placement.shapes_in_memory[parameter]
    return Weight(
        name, role_of(name), shape[::-1] if kind == "conv1d" else shape, source.dtype, kind, layer_of(name),
        f"{name}.bias" in placement.shapes_in_memory, parameter, transposed=kind == "conv1d",
    )  # fmt: skip


def _as_tied(checkpoint: Checkpoint, placement: Placement, weights: dict[str, Weight]) -> dict[str, Weight]:
    """`weights` (by parameter) with those tied that transformers ties, and no others.

    As its `tie_weights` on load: of a pair of which the file holds one, the other follows; two that are both there are tied when
    their numbers are equal.
    """
    pairs = getattr(placement.model, "all_tied_weights_keys", None) or {}
    stored = {name for name, weight in weights.items() if not weight.tied_to}
    found = {name: weight for name, weight in weights.items() if not weight.tied_to}
    for target, source in pairs.items():
        if source not in stored:
            target, source = source, target
        if source not in stored or not _is_module(placement, target):
            continue
        table = weights[source]
        if target not in stored:
            known = weights.get(target)
            name = known.name if known else target.removesuffix(".weight")
            kind = "embedding" if target.removesuffix(".weight") in placement.embeddings else "linear"
            found[target] = dataclasses.replace(
                known or table, name=name, role=known.role if known else role_of(name), kind=kind, layer=None, tensor="",
                tied_to=table.name,
            )  # fmt: skip
        elif checkpoint.has_weights and checkpoint.same_numbers(weights[target], table):
            found[target] = dataclasses.replace(weights[target], tensor="", tied_to=table.name)
    order = [*weights, *found]
    return {name: found[name] for name in dict.fromkeys(order) if name in found}


def _is_module(placement: Placement, parameter: str) -> bool:
    return parameter.endswith(".weight") and parameter.removesuffix(".weight") in placement.modules


def _left_out_note(left_out: list[Weight], class_name: str) -> str:
    if not left_out:
        return ""
    others = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
    return f"In no module of {class_name}, so left out: {left_out[0].name}{others}."


def _transformers_config(raw: Mapping, name: str, trusted: Path | None = None) -> PretrainedConfig:
    """trusted: the folder whose code may be run, where only code can build this architecture."""
    from transformers import CONFIG_MAPPING

    refuse_impossible(raw, name)
    if remote_code.needs_code(raw):
        if trusted is None:
            raise remote_code.refusal(name, raw.get("model_type"))
        with _quiet(name):
            return remote_code.own_config(raw, trusted, name)
    model_type = raw.get("model_type")
    if not model_type:
        raise CheckpointError(f"{name} has no config.json that names its model_type, so its architecture is unknown; add one.")
    if model_type not in CONFIG_MAPPING:
        raise CheckpointError(f"{name} is a {model_type!r} model, which this version of transformers does not know.")
    try:
        with _quiet(name):
            return CONFIG_MAPPING[model_type].from_dict({key: value for key, value in raw.items() if key != "auto_map"})
    except CheckpointError:
        raise
    except Exception as error:  # transformers validates its configs with many exception types
        raise CheckpointError(f"transformers refuses the config of {name}: {one_line(error)}.") from error


def _model_class(config: PretrainedConfig, raw: Mapping) -> type[PreTrainedModel]:
    import transformers

    for architecture in raw.get("architectures") or []:
        found = getattr(transformers, str(architecture), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    found = transformers.AutoModel._model_mapping[type(config)]
    return found[0] if isinstance(found, (list, tuple)) else found


def _build(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    import torch
    from transformers.initialization import no_init_weights

    name = str(getattr(config, "name_or_path", "") or config.model_type)
    with torch.device("meta"), no_init_weights(), few_modules(name):
        model = model_class(config)
    model.tie_weights()
    return model


def _saved_tensors(model: PreTrainedModel, *, head_is_tied: bool) -> dict:
    """Checkpoint key -> meta tensor, as save_pretrained would write them.

    `head_is_tied` off keeps the output matrix: transformers 5 ties T5's whatever its config says, the published checkpoints of
    T5 1.1 and flan-t5 hold one of their own.
    """
    from transformers.core_model_loading import revert_weight_conversion

    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    if not head_is_tied:
        tied.discard("lm_head.weight")
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    state = {key: tensor for key, tensor in model.state_dict().items() if key not in tied and key not in ignored}
    return revert_weight_conversion(model, state)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """No advice from transformers about a model nobody will run; its refusals become one sentence."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (
        ValueError, TypeError, AttributeError, KeyError, RuntimeError, ZeroDivisionError, ImportError, AssertionError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"transformers cannot build the architecture of {name}: {one_line(error)}.") from error
    finally:
        logging.set_verbosity(level)
