"""What PEFT's save_pretrained leaves to be done in an adapter's folder: names that mean something on other machines, and the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.adapter_names import PEFT_TYPE
from loraxs_core.base_name import base_name
from loraxs_core.card import CARD, loraxs_facts, name_base, write_card
from loraxs_core.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    from peft import PeftConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def named_settings(config: PeftConfig) -> dict[str, str | None]:
    """What adapter_config.json says otherwise than PEFT would: the method's name, and the base by hub id and revision where it has
    them."""
    base = base_name(config.base_model_name_or_path, config.revision)
    return {"peft_type": PEFT_TYPE, "base_model_name_or_path": base.id, "revision": base.revision}


def finish_folder(folder: Path, config: PeftConfig, scaling: float | None) -> None:
    """Puts `named_settings` into the adapter_config.json that PEFT wrote into `folder`; where the adapter's numbers lie beside it,
    writes the card too, and takes the base's path out of a card that PEFT wrote for several adapters one folder up.

    scaling: alpha / r where it is the same in every module."""
    path = folder / CONFIG
    settings = json.loads(path.read_text(encoding="utf-8")) | named_settings(config)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    given = config.base_model_name_or_path
    base = base_name(given, config.revision)
    for card in (folder / CARD, folder.parent / CARD):
        name_base(card, given, base)
    if (folder / WEIGHTS).is_file():
        file = SafetensorsFile(folder / WEIGHTS)
        shapes = {key: tuple(entry.shape) for key, entry in file.entries.items()}
        write_card(folder, loraxs_facts(shapes, base, config.task_type, scaling, file.path.stat().st_size))
