"""An adapter added to its base: a plain checkpoint that needs no PEFT.

The result is the base's own files with some tensors replaced. What the adapter does not touch is copied byte for byte, in the
precision it is stored in, whether transformers has a use for it or not; what it touches is computed by PEFT. Then the files are
opened again and compared with both (`loraxs_core.merged_files`), before success is reported.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core import merged_files
from loraxs_core.account import counted, some
from loraxs_core.adapter_folder import AdapterFolder
from loraxs_core.architecture import OWN, meta_model
from loraxs_core.checkpoint import CONFIG, Checkpoint
from loraxs_core.deltas import lost_start
from loraxs_core.errors import AdapterError, CheckpointError, one_line
from loraxs_core.loading import Loaded, load
from loraxs_core.paths import atomic_folder
from loraxs_core.quantized import PlainTensor

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel

COPIED_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "*.model",
    "chat_template*",
    "added_tokens.json",
    "generation_config.json",
    "*processor_config.json",
)
SENTENCE_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
_MERGE_ERRORS = (ValueError, RuntimeError, NotImplementedError, TypeError, AttributeError, KeyError)


@dataclass(frozen=True)
class Merge:
    """What a merge did. rounding: per module, ‖stored - exact‖_F / ‖ΔW‖_F caused by the base's precision, for methods that add a
    ΔW (DoRA and IA3 scale instead). out: the folder.

    changed: the tensors that differ from the base's, or are not in it. unmoved: modules of the adapter whose ΔW is nothing, or
    less than the base's precision can show. left_out: tensors of the base that the adapter's class has no place for, such as
    the head it was pretrained with. absent: parameters that no file holds and that are not written either.
    """

    out: Path
    rounding: dict[str, float]
    changed: tuple[str, ...] = ()
    unmoved: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def worst(self) -> float | None:
        return max(self.rounding.values(), default=None)

    def __str__(self) -> str:
        said = [
            f"{counted(len(self.changed), 'tensor')} changed, the others are the base's byte for byte (read back and compared)."
        ]
        if self.worst is None:
            said.append("The method scales weights and adds no ΔW, so there is no rounding of one to report.")
        else:
            said.append(f"Rounding to the base's precision changed ΔW by {self.worst:.1e} of its norm in the worst module.")
        if self.unmoved:
            said.append(
                f"{counted(len(self.unmoved), 'module')} of the adapter did not change, as ΔW is zero there or less than the base's "
                f"precision can show: {some(self.unmoved)}."
            )
        if self.left_out:
            said.append(f"Left out, as the adapter's class has no place for it: {some(self.left_out)}.")
        if self.absent:
            said.append(f"Not in the base and not written: {some(self.absent)}.")
        return " ".join(said)


def merge(folder: str | Path, base: Checkpoint, out: str | Path, *, shard_size: str = "5GB") -> Merge:
    """Adds the adapter's ΔW to the base weights and writes a plain checkpoint: sharded safetensors, config, tokenizer files, and
    what makes a sentence encoder one.

    Works for every adapter that PEFT can merge. Raises AdapterError for an adapter on a weight that is tied to another (the other
    use of it would change too), that holds only part of what was trained, is placed only in part or changes nothing;
    BasisMismatch when `base` is not the one the adapter was trained on; CheckpointError when `base` is quantised or lacks
    parameters. Nothing is left at `out` then.
    """
    adapter = AdapterFolder(folder)
    _refuse_settings(adapter)
    _refuse_quantised(base)
    loaded = load(adapter, base)
    inner = loaded.model.base_model.model
    if not hasattr(loaded.model.base_model, "merge_and_unload"):
        raise AdapterError(
            f"{adapter.path} is a {adapter.method} adapter, which cannot be merged into weights; use it through PEFT."
        )
    _refuse_tied(loaded.model, adapter)
    _refuse_bias(inner, adapter)
    rounding, moves = _rounding(inner, adapter)
    touched = _touched(loaded, moves)
    _put_back_whole_modules(loaded.model)
    try:
        merged = loaded.model.merge_and_unload(safe_merge=True)
    except _MERGE_ERRORS as error:
        raise AdapterError(f"PEFT cannot merge {adapter.path} into {base.name}: {one_line(error)}.") from error
    _refuse_untied(merged, adapter)
    own = meta_model(base, OWN)
    same_class = type(merged) in (type(own), type(own.base_model)) and merged.config.num_labels == own.config.num_labels
    planned = merged_files.plan(merged, base, touched, unread=loaded.unread, absent=loaded.absent, same_class=same_class)
    with atomic_folder(out) as temporary:
        _write_config(merged, adapter, base, temporary, same_class=same_class)
        merged_files.write(planned.tensors, temporary, shard_size=shard_size)
        _copy_files(base.folder, temporary)
        if adapter.task_type in (None, "FEATURE_EXTRACTION"):
            _copy_sentence_modules(base.folder, temporary)
        changed = merged_files.prove(temporary, planned, base, merged)
        if not changed:
            raise AdapterError(f"{adapter.path} changes nothing in {base.name}: every ΔW is zero; nothing was written.")
    unmoved = tuple(sorted(name for name in rounding if name not in moves))
    return Merge(Path(out), rounding, changed, unmoved, planned.left_out, loaded.absent)


def _rounding(inner: PreTrainedModel, adapter: AdapterFolder) -> tuple[dict[str, float], set[str]]:
    """(per module ‖stored - exact‖_F / ‖ΔW‖_F; the modules whose stored weight is another one than before)."""
    import torch

    found, moves = {}, set()
    for name, layer in _adapted(inner):
        weight = _weight(layer)
        if weight is None or not hasattr(layer, "get_delta_weight") or getattr(layer, "use_dora", {}).get("default"):
            continue
        delta = layer.get_delta_weight("default").detach().to(torch.float64)
        exact = weight.detach().to(torch.float64) + delta
        stored = exact.to(weight.dtype)
        if not stored.isfinite().all():
            raise AdapterError(
                f"{adapter.path} merged into {name} gives numbers that {str(weight.dtype).removeprefix('torch.')} cannot hold; merge it into "
                "a copy of the base in float32."
            )
        size = float(delta.norm())
        found[name] = float((stored.to(torch.float64) - exact).norm()) / size if size else 0.0
        if not torch.equal(stored, weight):
            moves.add(name)
    return found, moves


def _adapted(inner: PreTrainedModel) -> Iterator[tuple[str, BaseTunerLayer]]:
    """(path in the model without an adapter, layer) of every layer that carries the adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in inner.named_modules():
        if isinstance(layer, BaseTunerLayer) and "default" in _adapters_of(layer):
            yield ".".join(token for token in name.split(".") if token != "base_layer"), layer


def _weight(layer: BaseTunerLayer) -> torch.Tensor | None:
    """The parameter of the base that the layer adds to, of whichever name."""
    return getattr(layer.get_base_layer(), getattr(layer, "parameter_name", None) or "weight", None)


def _touched(loaded: Loaded, moves: set[str]) -> dict[str, bool]:
    """Parameter, as the merged model calls it -> whether it has to differ from the base's, for all that the adapter changes."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    inner = loaded.model.base_model.model
    found = {}
    for name, layer in _adapted(inner):
        main = getattr(layer, "parameter_name", None) or "weight"
        found |= {
            f"{name}.{parameter}": parameter == main and name in moves
            for parameter, _ in layer.get_base_layer().named_parameters()
        }
    for name, module in inner.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and "default" in module._adapters:
            whole = getattr(module, "modules_to_save", {})
            holder = whole["default"] if "default" in whole else module.get_base_layer()
            found |= {f"{name}.{parameter}": False for parameter in holder.state_dict()}
    for place in loaded.placed:
        found[".".join(token for token in place.split(".") if token not in ("base_layer", "original_module"))] = False
    return found


def _put_back_whole_modules(model: PeftModel) -> None:
    """Modules saved whole, such as heads, take their places. PEFT's merge would read the `weight` of each, which a head of several
    layers (RoBERTa's) does not have."""
    from peft.utils.other import ModulesToSaveWrapper

    inner = model.base_model.model
    for name, module in list(inner.named_modules()):
        if isinstance(module, ModulesToSaveWrapper) and "default" in module.modules_to_save:
            parent, _, child = name.rpartition(".")
            setattr(inner.get_submodule(parent), child, module.modules_to_save["default"])


def _set_padding(model: PreTrainedModel, base: Checkpoint) -> None:
    """A decoder's classifier looks for the last token that is no padding; without a padding token it refuses batches. As in
    training (`analyzers.compare.base_and_head`), texts are padded with the end token where there is no other."""
    from transformers import AutoTokenizer

    settings = model.config.get_text_config()
    if settings.pad_token_id is not None:
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
    except Exception:  # a folder without a tokenizer, or one that its format's parser refuses: the user has one elsewhere
        return
    settings.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def _write_config(merged: PreTrainedModel, adapter: AdapterFolder, base: Checkpoint, folder: Path, *, same_class: bool) -> None:
    """The base's own config.json where the result is the same class; else that of the new one."""
    if adapter.task_type == "SEQ_CLS":
        _set_padding(merged, base)
    elif same_class:
        shutil.copy2(base.folder / CONFIG, folder / CONFIG)
        return
    merged.config.architectures = [type(merged).__name__]
    merged.config.dtype = str(merged.dtype).removeprefix("torch.")
    merged.config.save_pretrained(folder)


def _copy_files(folder: Path, out: Path) -> None:
    for pattern in COPIED_FILES:
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copy2(file, out / file.name)


def _copy_sentence_modules(folder: Path, out: Path) -> None:
    """What tells sentence-transformers (and `loraxs compare`) how to pool: its configs, and safetensors of further modules."""
    for name in SENTENCE_FILES:
        if (folder / name).is_file():
            shutil.copy2(folder / name, out / name)
    try:
        paths = [Path(module["path"]) for module in json.loads((folder / "modules.json").read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for path in paths:
        if len(path.parts) != 1 or path.parts[0] == "..":  # the model itself, or a place outside the folder
            continue
        for file in [*(folder / path).glob("*.json"), *(folder / path).glob("*.safetensors")]:
            (out / path).mkdir(exist_ok=True)
            shutil.copy2(file, out / path / file.name)


def _refuse_settings(adapter: AdapterFolder) -> None:
    """Adapters that PEFT would put on other base weights than those they were trained on, or whose layers are no weights."""
    start = adapter.config.get("init_lora_weights")
    if adapter.method == "LORA" and lost_start(start):
        raise AdapterError(
            f"{adapter.path} was initialised by {start}, which changed the base weights in a way that is not in the file; save it as "
            "a plain LoRA where it was trained (PEFT's path_initial_model_for_weight_conversion)."
        )
    if repeated := adapter.config.get("layer_replication"):
        raise AdapterError(
            f"{adapter.path} repeats layers of its base (layer_replication={repeated}): several layers share one weight and differ "
            "by the adapter alone, which merged weights cannot hold; use it through PEFT, unmerged."
        )


def _refuse_quantised(base: Checkpoint) -> None:
    """A ΔW is small beside the steps of a quantised weight, and PEFT's way back into them is lossy."""
    coded = [name for name, tensor in base.tensors.items() if not isinstance(tensor, PlainTensor)]
    if coded:
        raise CheckpointError(
            f"{base.name} is quantised ({counted(len(coded), 'tensor')}: {some(coded)}), and merging would round ΔW away; merge into the "
            "16-bit checkpoint it was made from."
        )


def _refuse_bias(inner: PreTrainedModel, adapter: AdapterFolder) -> None:
    lacking = [
        name for name, layer in _adapted(inner)
        if getattr(layer, "lora_bias", {}).get("default") and getattr(layer.get_base_layer(), "bias", None) is None
    ]  # fmt: skip
    if lacking:
        raise AdapterError(
            f"{adapter.path} adds a bias (lora_bias) to {some(lacking)}, where the base has none that it could be merged into; use it "
            "through PEFT, unmerged, or train it again with lora_bias=False."
        )


def _refuse_untied(merged: PreTrainedModel, adapter: AdapterFolder) -> None:
    """Two parameters that are one in the files, and are two since one of them was trained whole."""
    import torch

    state = merged.state_dict()
    for name, other in (merged.all_tied_weights_keys or {}).items():
        if name in state and other in state and not torch.equal(state[name], state[other]):
            raise AdapterError(
                f"{adapter.path} trained {name} and {other} apart, which are tied in its base, so one file cannot hold both; keep the "
                "adapter unmerged, or train it with both in modules_to_save and ensure_weight_tying=True."
            )


def _refuse_tied(model: PeftModel, adapter: AdapterFolder) -> None:
    shared: dict[int, list[str]] = {}
    inner = model.base_model.model
    for name, module in inner.named_modules():
        weight = getattr(module, "weight", None)
        if (
            weight is not None
            and not name.endswith(".base_layer")
            and hasattr(weight, "data_ptr")
            and not hasattr(module, "base_layer")
        ):
            shared.setdefault(id(weight), []).append(name)
    for name, module in inner.named_modules():
        if hasattr(module, "base_layer") and "default" in _adapters_of(module):
            others = shared.get(id(module.get_base_layer().weight), [])
            others = [other for other in others if not other.startswith(name)]
            if others:
                raise AdapterError(
                    f"{adapter.path} adapts {name}, whose weight is tied to {others[0]}: merging would change both. Untie them first "
                    "(tie_word_embeddings=False), or keep the adapter unmerged."
                )


def _adapters_of(layer) -> list[str]:
    return [adapter for kind in layer.adapter_layer_names for adapter in getattr(layer, kind, {})]
