"""An adapter's folder as PEFT writes it: its configuration, and the names and shapes of its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.adapter_names import FileNames, method_of
from loraxs_core.errors import AdapterError, CheckpointError
from loraxs_core.paths import user_path
from loraxs_core.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"


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
        self.names = FileNames.of(self.file.entries)

    @property
    def method(self) -> str:
        """PEFT's name of the method, ``LORA`` or ``LORAXS``."""
        return method_of(self.config)

    @property
    def task_type(self) -> str | None:
        return self.config.get("task_type")

    @property
    def heads(self) -> dict[str, str]:
        """Name -> tensor key of everything saved whole (``modules_to_save``), such as ``classifier.weight``.

        PEFT saves every module whose path ends in one of the names, so ``classifier`` names DistilBERT's ``pre_classifier`` too.
        """
        wanted = self.config.get("modules_to_save") or ()
        return {name: key for name, key in self.names.keys.items() if any(f"{one}." in name for one in wanted)}

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
