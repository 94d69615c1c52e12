"""PEFT configurations from anywhere: an object of PEFT's, or the values of an adapter_config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.adapter_names import PEFT_TYPE, method_of
from loraxs_core.errors import SettingsError, one_line

if TYPE_CHECKING:
    from peft import PeftConfig

# Entries that say something about single layers by their numbers, so that a model of fewer layers is not like the whole.
OF_LAYERS = ("layers_to_transform", "layer_replication", "adapter_layers")
NUMBERED = re.compile(r"[.(|\[]\d|\\d")  # a part of a path that is a number, or a pattern of one
NAMES = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "feedforward_modules", "modules_to_save")


def plain_config(config: Mapping | PeftConfig) -> dict[str, object]:
    """The values of a configuration as its adapter_config.json holds them. Raises SettingsError for what is none."""
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    kind = values.get("peft_type")
    if not kind:
        raise SettingsError("A PEFT configuration has a peft_type; this has none. Give an adapter_config.json that PEFT wrote.")
    values["peft_type"] = method_of({"peft_type": getattr(kind, "value", kind)})  # our own files also say what to install
    values["task_type"] = getattr(values.get("task_type"), "value", values.get("task_type"))
    return {name: _plain(value) for name, value in values.items()}


def read_config(path: Path) -> dict[str, object]:
    """The values of the adapter_config.json at `path`, or in that folder. Raises SettingsError when it cannot be read."""
    file = path / "adapter_config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"There is no file {file}; give an adapter_config.json or the folder of an adapter.") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} cannot be read as an adapter_config.json: {one_line(error)}.") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{file} holds no adapter configuration.")
    return plain_config(values)


def of_single_layers(values: Mapping) -> bool:
    """Whether the configuration tells layers apart by their numbers."""
    if any(values.get(name) for name in OF_LAYERS):
        return True
    names = [values.get(name) for name in NAMES]
    return any(NUMBERED.search(str(list(one) if isinstance(one, Mapping) else one or "")) for one in names)


def make_config(values: Mapping, task: str, **own: object) -> PeftConfig:
    """PEFT's configuration of `values`, for a model of PEFT's task type `task`; own: replaces values, where the type has them. Entries
    that a newer PEFT wrote and this one does not know are left out, as PEFT itself does.

    Raises SettingsError for a type that PEFT does not know and for values that it refuses."""
    refuse_unknown_type(values)
    known, kind = _types(), str(values["peft_type"])
    accepted = {one.name for one in fields(known[kind]) if one.init} - {"peft_type"}
    asked = {**values, **own, "task_type": task, "inference_mode": False}
    given = {name: value for name, value in asked.items() if name in accepted}
    try:
        return known[kind](**given)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"PEFT refuses this {kind} configuration: {one_line(error)}") from None


def refuse_unknown_type(values: Mapping, whose: str = "") -> None:
    """Raises SettingsError where this PEFT has no adapter of the type that the configuration names. whose: its name, for the sentence."""
    known, kind = _types(), str(values["peft_type"])
    if kind not in known:
        of = f"The configuration {whose!r} cannot be trained: " if whose else ""
        raise SettingsError(
            f"{of}PEFT knows no adapter of type {kind!r}; there are {', '.join(sorted(known.keys() - {PEFT_TYPE}))}."
        )


def left_out(values: Mapping) -> list[str]:
    """The entries that say something and that PEFT's type of configuration does not know: a newer PEFT's, or misspelt."""
    kind = _types().get(str(values["peft_type"]))
    known = {one.name for one in fields(kind)} if kind else set(values)
    return [
        str(name)
        for name, value in values.items()
        if name not in known and name != "peft_version" and value not in (None, {}, [])
    ]


def _types() -> dict[str, type[PeftConfig]]:
    """What PEFT calls each type -> its configuration; LoRA-XS's among them."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    import loraxs_core.tuner  # noqa: F401  registers LoRA-XS

    return {str(getattr(kind, "value", kind)): made for kind, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def _plain(value):
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    return value
