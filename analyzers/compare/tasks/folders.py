"""Which files of a folder are which split of which data set: as people keep data, and as repositories of the hub lay it out.

Files called after their splits (``train.jsonl``, ``train-00000-of-00002.parquet``), folders called so (``train/0000.parquet``), both
under ``data/``, or under a folder for each configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from analyzers.compare.tasks.kinds import BUILDERS, file_suffix
from loraxs_core.errors import SettingsError

SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "devel": "validation", "development": "validation", "eval": "validation", "evaluation": "validation", "test": "test", "testing": "test",
    "trn": "train", "tst": "test",
}  # fmt: skip
SAVED = ("state.json", "dataset_dict.json")  # of `datasets`' save_to_disk
ABOUT = ("dataset_infos.json", "dataset_info.json", *SAVED, "metadata.json")  # no data: about it
DEPTH, MOST_ENTRIES = 3, 20_000  # levels of folders in a folder, and entries in all of them, that are looked through
_SHARD = re.compile(r"[-_.]\d+([-_.]of[-_.]\d+)?$")


def data_folder(folder: Path, configuration: str = "") -> Path:
    """Where in `folder` one data set lies: its files, folders called after splits, or what `datasets` saved. configuration: the folder in it that
    is meant.

    Raises SettingsError for a folder without data, or with several data sets of which none is named.
    """
    there = _holding(folder)
    if configuration:
        if configuration not in there:
            names = ", ".join(there) or "none"
            raise SettingsError(f"{folder} has no configuration {configuration!r}; its folders with data are: {names}.")
        return data_folder(there[configuration])
    if is_saved(folder) or _data_files(folder) or (there and all(split_word(name) for name in there)):
        return folder
    if not there:
        raise SettingsError(f"{folder} holds no {', '.join(BUILDERS)} file.")
    if len(there) > 1 and "data" not in there:
        raise SettingsError(f"{folder} holds several data sets, {', '.join(there)}; say which: {folder}:{next(iter(there))}.")
    return data_folder(there.get("data", next(iter(there.values()))))


def split_files(folder: Path) -> dict[str, list[Path]]:
    """Split -> its files in a `data_folder`, all of one kind; ``""`` where nothing is called after a split. Raises SettingsError."""
    named: dict[str, list[Path]] = {}
    for file in (files := _data_files(folder)):
        named.setdefault(split_word(file.name), []).append(file)
    if "" in named and len(named) > 1:
        raise SettingsError(
            f"{folder} holds {named[''][0].name} beside files called after their splits; call it train, validation or test."
        )
    if not files:
        for name, inside in _holding(folder).items():
            named.setdefault(split_word(name), []).extend(data_files_below(inside))
    kinds = {BUILDERS[file_suffix(file)] for files in named.values() for file in files}
    if len(kinds) > 1:
        raise SettingsError(f"{folder} holds files of different kinds ({', '.join(sorted(kinds))}); leave those of one in it.")
    return named


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved it (``save_to_disk``)."""
    return any((folder / name).is_file() for name in SAVED)


def has_configuration(folder: Path, configuration: str) -> bool:
    """Whether `folder` keeps `configuration` in a folder of its own, or its card (README.md) tells of it."""
    return configuration in _holding(folder) or configuration in card_configurations(folder)


def card_configurations(folder: Path) -> tuple[str, ...]:
    """The configurations that the card of a repository of the hub names with their files; none without such a card, or with one that names
    files anywhere but in `folder`."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ()
    parts = re.split(r"^---\s*$", card, maxsplit=2, flags=re.MULTILINE)
    try:
        known = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return ()
    named = known.get("configs") if isinstance(known, Mapping) else None
    told = [one for one in (named if isinstance(named, list) else ()) if isinstance(one, Mapping)]
    told = [one for one in told if one.get("data_files") or one.get("data_dir")]
    if any(_elsewhere(path) for one in told for path in _strings([one.get("data_files"), one.get("data_dir")])):
        return ()
    return tuple(str(one.get("config_name", "default")) for one in told)


def _strings(given: object) -> Iterator[str]:
    if isinstance(given, str):
        yield given
    elif isinstance(given, Mapping):
        yield from _strings(list(given.values()))
    elif isinstance(given, list):
        for one in given:
            yield from _strings(one)


def _elsewhere(path: str) -> bool:
    """Whether `path` leaves the folder that it is meant in: an address, an absolute path, or one that goes up."""
    return ":" in path or path.startswith(("/", "~", "\\")) or ".." in re.split(r"[/\\]", path)


def split_word(name: str) -> str:
    """The split that a file or folder is called after, as in ``reviews-dev.jsonl``; MNLI's two keep their names. Empty for none."""
    stem = _SHARD.sub("", name.lower().split(".")[0])
    if stem.endswith("matched"):
        return stem
    words = re.split(r"[-_ ]", stem)
    near = [words[0], words[-1], *words[1:-1]]
    return next((SPLIT_NAMES[word] for word in near if word in SPLIT_NAMES), "")


def data_files_below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The files of data in `folder` and in the folders in it, by name, `depth` levels down: nobody's whole disk is gone through.

    Raises SettingsError for a folder that cannot be read, or one of more than `MOST_ENTRIES` entries.
    """
    waiting, seen = [(folder, depth)], 0
    while waiting:
        here, left = waiting.pop(0)
        entries = _entries(here)
        seen += len(entries)
        if seen > MOST_ENTRIES:
            raise SettingsError(f"{folder} holds more than {MOST_ENTRIES:,} files; name the folder that the data lies in.")
        yield from (entry for entry in entries if _is_data(entry) and entry.is_file())
        if left:
            waiting += [(entry, left - 1) for entry in entries if not entry.name.startswith((".", "_")) and entry.is_dir()]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise SettingsError(f"Cannot read {folder}: {error.strerror or error}.") from None


def _is_data(file: Path) -> bool:
    return file_suffix(file) in BUILDERS and file.name not in ABOUT and not file.name.startswith(".")


def _data_files(folder: Path) -> list[Path]:
    """The files of data in `folder` itself; beside others, text files are about them (README.txt, labels.txt)."""
    files = list(data_files_below(folder, depth=0))
    return [file for file in files if BUILDERS[file_suffix(file)] != "text"] or files


def _holding(folder: Path) -> dict[str, Path]:
    """Name -> each folder in `folder` below which there is data."""
    inside = (one for one in _entries(folder) if not one.name.startswith((".", "_")) and one.is_dir())
    return {one.name: one for one in inside if is_saved(one) or any(True for _ in data_files_below(one, DEPTH - 1))}
