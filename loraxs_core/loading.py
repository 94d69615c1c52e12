"""From a checkpoint and an adapter folder to loaded models, through transformers and PEFT.

Only safetensors are read and remote code is never run. The class is the one that the adapter's task type names, with as many
labels as its saved head has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.errors import AdapterError, CheckpointError, SettingsError, WeightsMissing
from loraxs_core.paths import user_path
from loraxs_core.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from loraxs_core.checkpoint import Checkpoint

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before module names in an adapter file


class AdapterFolder:
    """An adapter as PEFT saves it: its configuration and the names and shapes of its tensors.

    path: the folder. config: adapter_config.json. file: its safetensors. Raises AdapterError in one sentence for a folder that is
    missing, has no adapter in it, holds only pickled weights or a damaged file.
    """

    def __init__(self, path: str | Path):
        self.path = user_path(path)
        if not self.path.is_dir():
            raise AdapterError(f"There is no adapter folder {self.path}; give the folder that has {ADAPTER_CONFIG} in it.")
        self.config = self._read_config()
        if not (self.path / ADAPTER_FILE).is_file():
            pickled = (self.path / "adapter_model.bin").is_file()
            raise AdapterError(
                f"{self.path} holds only pickled weights (adapter_model.bin), which can run code when opened and are refused; "
                "save the adapter again with safetensors."
                if pickled
                else f"{self.path} has no {ADAPTER_FILE}; copy the whole adapter folder."
            )
        try:
            self.file = SafetensorsFile(self.path / ADAPTER_FILE)
        except CheckpointError as error:
            raise AdapterError(str(error)) from error

    @property
    def method(self) -> str:
        """PEFT's name of the method, ``LORA`` or ``LORAXS``."""
        return str(self.config.get("peft_type", ""))

    @property
    def task_type(self) -> str | None:
        return self.config.get("task_type")

    @property
    def heads(self) -> dict[str, str]:
        """Name -> tensor key of everything saved whole (``modules_to_save``), such as ``classifier.weight``.

        PEFT saves every module whose path ends in one of the names, so ``classifier`` names DistilBERT's ``pre_classifier`` too.
        """
        names = self.config.get("modules_to_save") or ()
        return {key.removeprefix(PREFIX): key for key in self.file.entries if any(f"{name}." in key for name in names)}

    def head(self) -> dict[str, torch.Tensor]:
        """The tensors of `heads`, by name."""
        from safetensors import safe_open

        with safe_open(self.file.path, framework="pt") as file:
            return {name: file.get_tensor(key) for name, key in self.heads.items()}

    def _read_config(self) -> dict:
        path = self.path / ADAPTER_CONFIG
        if not path.is_file():
            raise AdapterError(f"{self.path} has no {ADAPTER_CONFIG}, so it is no adapter; give the folder that PEFT saved.")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AdapterError(f"{path} is not valid JSON; copy the adapter folder again.") from error
        if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
            raise AdapterError(f"{path} does not say which method the adapter is (peft_type); copy the adapter folder again.")
        return config


def load_adapter(adapter: AdapterFolder, checkpoint: Checkpoint) -> PeftModel:
    """The adapter on its base, in evaluation mode; a LoRA-XS adapter's bases are verified on the way.

    Raises BasisMismatch naming the modules when the base is not the one the adapter was trained on, AdapterError for an adapter
    that PEFT cannot load, or whose head is neither in its file nor in the base.
    """
    from peft import PeftModel

    import loraxs_core.tuner  # noqa: F401  registers LoRA-XS with PEFT

    model, fresh = _load_base(checkpoint, adapter.task_type, _labels(adapter, checkpoint))
    # A pooler that nothing reads may be missing from a bare encoder; a head or a pooler under a head may not.
    if adapter.task_type not in (None, "FEATURE_EXTRACTION") and (absent := sorted(fresh - adapter.heads.keys())):
        raise AdapterError(
            f"{absent[0]} of the model that {adapter.path} was trained on is neither in the adapter nor in {checkpoint.name}; train "
            f"it again with modules_to_save={sorted({one.rpartition('.')[0] for one in absent})}."
        )
    try:
        return PeftModel.from_pretrained(model, adapter.path).eval()
    except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AdapterError(f"PEFT cannot load {adapter.path} on {checkpoint.name}: {reason}") from error


def _load_base(checkpoint: Checkpoint, task_type: str | None, labels: int | None) -> tuple[PreTrainedModel, set[str]]:
    """(the transformers model of `checkpoint` for a PEFT task type, in the precision it is stored in, on the CPU; the parameters
    that the checkpoint does not hold, or holds for another number of labels).

    Raises WeightsMissing for an architecture without weights, SettingsError when it has no such head, CheckpointError when
    transformers cannot load it.
    """
    import transformers

    from loraxs_core.architecture import AUTO_CLASSES

    if checkpoint.folder is None or not checkpoint.has_weights:
        raise WeightsMissing(
            f"{checkpoint.name} is an architecture without weights; give a folder or a hub id that holds safetensors files of it."
        )
    if task_type not in AUTO_CLASSES:
        raise SettingsError(f"Unknown task type {task_type!r}; there are {', '.join(str(one) for one in AUTO_CLASSES if one)}.")
    settings: Mapping[str, object] = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    try:
        model, loading = getattr(transformers, AUTO_CLASSES[task_type]).from_pretrained(
            checkpoint.folder, dtype="auto", use_safetensors=True, trust_remote_code=False, local_files_only=True,
            output_loading_info=True, **settings,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"transformers cannot load {checkpoint.name}: {reason}") from error
    mismatched = {one if isinstance(one, str) else one[0] for one in loading["mismatched_keys"]}
    return model, {*loading["missing_keys"], *mismatched} & {name for name, _ in model.named_parameters()}


def _labels(adapter: AdapterFolder, checkpoint: Checkpoint) -> int | None:
    """How many labels the head in the adapter has; None where none is saved. Read off the tensor that grows with that number in
    transformers' own class, as architectures call it by different names."""
    from loraxs_core.architecture import meta_model

    if adapter.task_type not in ("SEQ_CLS", "TOKEN_CLS") or not adapter.heads:
        return None
    few, many = (
        {name: tuple(one.shape) for name, one in meta_model(checkpoint, adapter.task_type, num_labels=n).named_parameters()}
        for n in (3, 5)
    )
    for name, key in adapter.heads.items():
        if few.get(name, ())[:1] == (3,) and many[name][:1] == (5,):
            return adapter.file.entries[key].shape[0]
    return None
