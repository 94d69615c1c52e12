"""Architectures that transformers does not ship: Python files in the checkpoint's own folder, run only for a user who allows it.

A config.json names such code under ``auto_map``, as in ``{"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM":
"modeling_x.XForCausalLM"}``. It is imported by transformers' own loader, from that folder and nowhere else. Where transformers
knows the architecture itself, its own class is taken and the folder's code is left alone, allowed or not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.errors import CheckpointError, SettingsError, one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_REFERENCE = re.compile(r"(\w+)\.(\w+)")  # file without .py, class


def needs_code(config: Mapping) -> bool:
    """Whether a config.json describes an architecture that only code beside it can build."""
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    return isinstance(config.get("auto_map"), Mapping) and not known


def code_digest(folder: Path | None) -> str:
    """A digest of every Python file in `folder`: changes when one does. Nothing is run."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")) if folder else ():
        digest.update(repr((str(path.relative_to(folder)), path.read_bytes())).encode())
    return digest.hexdigest()


def refusal(name: str, model_type: object) -> CheckpointError:
    """What is said as long as the code was not allowed."""
    return CheckpointError(
        f"{name} is a {str(model_type)!r} model, which transformers knows only through the Python code in the model's folder; that "
        "code was not run. If you have read and trust it, a memory estimate may run it: trust_remote_code (--trust-remote-code)."
    )


def own_config(raw: Mapping, folder: Path | None, name: str) -> PretrainedConfig:
    """The configuration, by the folder's own class. Runs the folder's code. Raises CheckpointError in one sentence."""
    values = {key: value for key, value in raw.items() if key != "auto_map"}
    config_class = _imported(raw["auto_map"].get("AutoConfig"), folder, name)
    try:
        return config_class.from_dict(values)
    except Exception as error:  # whatever the folder's code raises
        raise CheckpointError(f"The code of {name} refuses its config.json: {one_line(error)}.") from error


def own_model_class(raw: Mapping, folder: Path | None, name: str, auto_class: str | None) -> type[PreTrainedModel]:
    """The folder's own class for `auto_class`, such as ``AutoModelForCausalLM``; None: the one its config.json names as its own.

    Runs the folder's code. Raises SettingsError when there is no such class, CheckpointError when it cannot be imported.
    """
    references = {key: value for key, value in raw["auto_map"].items() if key.startswith("AutoModel")}
    if auto_class is None:
        own = {str(one) for one in raw.get("architectures") or ()}
        auto_class = next((key for key, value in references.items() if str(value).rpartition(".")[2] in own), "AutoModel")
    if auto_class not in references:
        there = ", ".join(key.removeprefix("Auto") for key in references) or "no model at all"
        raise SettingsError(f"The code of {name} has no {auto_class.removeprefix('Auto')}, only {there}; choose another task.")
    return _imported(references[auto_class], folder, name)


def _imported(reference: object, folder: Path | None, name: str) -> type:
    """The class that an entry of ``auto_map`` names."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    match = _REFERENCE.fullmatch(str(reference))
    if match is None:  # also "owner/repository--file.Class": code from elsewhere, which nobody looked at here
        raise CheckpointError(
            f"The config.json of {name} names {str(reference)!r} as its code; only 'file.Class' in the model's own folder is run."
        )
    if folder is None or not (folder / f"{match[1]}.py").is_file():
        raise CheckpointError(
            f"{name} needs {match[1]}.py, which is not in {folder or 'its folder'}; put the model's Python files there first."
        )
    try:
        return get_class_from_dynamic_module(str(reference), str(folder), local_files_only=True)
    except (Exception, SystemExit) as error:  # an import runs the file: it can raise anything
        raise CheckpointError(f"The code of {name} cannot be used: {one_line(error)}.") from error
