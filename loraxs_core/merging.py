"""An adapter added to its base: a plain checkpoint that needs no PEFT."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError
from loraxs_core.loading import AdapterFolder, load_adapter
from loraxs_core.paths import atomic_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "*.model",
    "chat_template*",
    "added_tokens.json",
)
SENTENCE_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
EXACT_STARTS = ("pissa", "olora")  # changes of the base that PEFT finds again when it loads the adapter


@dataclass(frozen=True)
class Merge:
    """What a merge did. rounding: per module, ‖stored - exact‖_F / ‖ΔW‖_F caused by the base's precision, for methods that add a
    ΔW (DoRA and IA3 scale instead). out: the folder."""

    out: Path
    rounding: dict[str, float]

    @property
    def worst(self) -> float | None:
        return max(self.rounding.values(), default=None)

    def __str__(self) -> str:
        if self.worst is None:
            return "The method scales weights and adds no ΔW, so there is no rounding of one to report."
        return f"Rounding to the base's precision changed ΔW by {self.worst:.1e} of its norm in the worst module."


def merge(folder: str | Path, base: Checkpoint, out: str | Path, *, shard_size: str = "5GB") -> Merge:
    """Adds the adapter's ΔW to the base weights and writes a plain checkpoint: sharded safetensors, config, tokenizer files, and
    what makes a sentence encoder one.

    Works for every adapter that PEFT can merge. Raises AdapterError for an adapter on a weight that is tied to another (the other
    use of it would change too) or that holds only part of what was trained, BasisMismatch when `base` is not the one the adapter
    was trained on.
    """
    adapter = AdapterFolder(folder)
    _refuse_random_start(adapter)
    model = load_adapter(adapter, base)
    _refuse_tied(model, adapter)
    rounding = _rounding(model)
    _put_back_whole_modules(model)
    merged = model.merge_and_unload(safe_merge=True)
    if adapter.task_type == "SEQ_CLS":
        _set_padding(merged, base)
    with atomic_folder(out) as temporary:
        merged.save_pretrained(temporary, max_shard_size=shard_size)
        for pattern in TOKENIZER_FILES:
            for file in base.folder.glob(pattern):
                if file.is_file():
                    shutil.copy2(file, temporary / file.name)
        if adapter.task_type in (None, "FEATURE_EXTRACTION"):
            _copy_sentence_modules(base.folder, temporary)
    return Merge(Path(out), rounding)


def _rounding(model: PeftModel) -> dict[str, float]:
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if not (hasattr(layer, "get_delta_weight") and hasattr(layer, "base_layer") and "default" in _adapters_of(layer)):
            continue
        if getattr(layer, "use_dora", {}).get("default"):
            continue
        import torch

        weight = layer.get_base_layer().weight.detach()
        delta = layer.get_delta_weight("default").to(torch.float64)
        exact = weight.to(torch.float64) + delta
        size = float(delta.norm())
        found[name] = float((exact.to(weight.dtype).to(torch.float64) - exact).norm()) / size if size else 0.0
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


def _refuse_random_start(adapter: AdapterFolder) -> None:
    """Adapters that PEFT would put on other base weights than those they were trained on."""
    from loraxs_core.deltas import changes_base

    start = adapter.config.get("init_lora_weights")
    if adapter.method == "LORA" and changes_base(start) and start not in EXACT_STARTS:
        raise AdapterError(
            f"{adapter.path} was initialised by {start}, which changed the base weights in a way that is not in the file; save it as "
            "a plain LoRA where it was trained (PEFT's path_initial_model_for_weight_conversion)."
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
