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
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import CheckpointError, SettingsError, one_line
from loraxs_core.inventory import TensorInfo, inventory, pattern_key

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
    raw = dict(config) if isinstance(config, Mapping) else config.to_dict()
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
    weights = [
        dataclasses.replace(weight, tensor="") for weight in inventory(infos, raw | {"architectures": [type(model).__name__]})
    ]
    return Checkpoint(name=name, config=raw, weights=weights)


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


def model_tensors(checkpoint: Checkpoint, task: str | None = OWN) -> dict:
    """Checkpoint key -> meta tensor of everything that save_pretrained of the model itself would write, tied weights once."""
    return _saved_tensors(meta_model(checkpoint, task), head_is_tied=checkpoint.config.get("tie_word_embeddings") is not False)


def module_names(checkpoint: Checkpoint, task: str | None = None) -> dict[str, str]:
    """`Weight.name` -> the path of its module inside the model that the auto class of `task` loads.

    Follows transformers' own renaming on load: the base model's prefix comes or goes (``encoder.layer.0…`` ->
    ``bert.encoder.layer.0…``) and some architectures have other names in memory than on disk (ViT, Gemma 3 with images). Weights
    without a module of their own there (experts fused into one parameter, heads this model does not have) are left out.
    """
    names = hash(tuple(weight.name for weight in checkpoint.weights))
    return dict(_module_names(_Asked(checkpoint.fingerprint, task, names, checkpoint)))


def module_keys(checkpoint: Checkpoint) -> dict[str, str]:
    """`Weight.name` -> the end of its module's path in memory that is the same under any head: what PEFT's patterns should say.

    It is `Weight.key` but for architectures that transformers renames on load, and for those that it does not know.
    """
    try:
        paths = module_names(checkpoint, OWN)
    except (CheckpointError, SettingsError):
        paths = {}
    return {weight.name: pattern_key(paths.get(weight.name, weight.name)) for weight in checkpoint.weights}


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What `module_names` was asked; equal when model, task and inventory are."""

    fingerprint: str
    task: str | None
    names: int
    checkpoint: Checkpoint = dataclasses.field(compare=False)


@lru_cache(maxsize=32)
def _module_names(asked: _Asked) -> dict[str, str]:
    model = meta_model(asked.checkpoint, asked.task)
    modules = {name for name, _ in model.named_modules()}
    rename = _renaming(model)
    found = {}
    for weight in asked.checkpoint.weights:
        if weight.kind == "parameter" or weight.expert is not None:
            continue
        module = rename(f"{weight.name}.weight").removesuffix(".weight")
        if module in modules:
            found[weight.name] = module
    return found


def _transformers_config(raw: Mapping, name: str, trusted: Path | None = None) -> PretrainedConfig:
    """trusted: the folder whose code may be run, where only code can build this architecture."""
    from transformers import CONFIG_MAPPING

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

    with torch.device("meta"), no_init_weights():
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


def _renaming(model: PreTrainedModel):
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    state = model.state_dict()
    return lambda key: rename_source_key(key, renamings, converters, model.base_model_prefix, state)[0]


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
