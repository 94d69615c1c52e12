"""One door for data in rows: a CSV, JSON, JSON-lines, Parquet or text file, a folder of them, a saved `datasets` folder, or a hub id.

All but CSV files are read by `datasets`; those are read by `csv_file`, which is stricter. Nothing here knows what a task is.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzers.compare.tasks.csv_file import csv_rows
from analyzers.compare.tasks.folders import card_configurations, data_files_below, data_folder, is_saved, split_files
from analyzers.compare.tasks.kinds import BUILDERS, OPENERS, file_suffix
from loraxs_core.errors import SettingsError
from loraxs_core.paths import cache_dir, user_path

if TYPE_CHECKING:
    from datasets import Dataset, Features

PACKED = (".zip", ".tar", ".tgz", ".7z", ".rar")
KINDS = "give a CSV, JSON, JSON-lines, Parquet or text file, or a folder of them"


@dataclass(frozen=True)
class Table:
    """Rows as they stand. name: what to call it. columns: name -> what it holds, those of all splits. parts: rows by the name of their split, ``""``
    where the source has none. lines: where each row of a CSV file ends; rows of other sources are counted. separator: between the fields
    of a CSV file."""

    name: str
    columns: Mapping[str, str]
    parts: Mapping[str, list[dict[str, Any]]]
    lines: Mapping[str, list[int]] = field(default_factory=dict)
    source: str = ""
    separator: str = ","

    def where(self, part: str, index: int) -> str:
        """Names a row: ``line 7``, or ``row 6 of train``."""
        place = f"line {self.lines[part][index]}" if part in self.lines else f"row {index + 1}"
        return place + (f" of {part}" if part else "")


@dataclass(frozen=True)
class _Part:
    """One split. lines, separator: as of `Table`; no lines where rows are counted."""

    columns: Mapping[str, str]
    rows: list[dict[str, Any]]
    lines: list[int] | None = None
    separator: str = ","

    @classmethod
    def of(cls, dataset: Dataset, named: bool) -> _Part:
        features = dataset.features
        columns = {column: type_word(features, column) for column in features}
        return cls(columns, _plain(dataset) if named else dataset.to_list())


def read_table(source: str, *, named: bool = True) -> Table:
    """The rows of `source`: a file, a folder, or a hub id; of a folder and a hub id with several data sets, which one stands after a colon.

    What is on this machine goes before what the hub has. named: whether class labels are given by their names, rather than as the
    numbers that are stored. Raises SettingsError in one sentence for what cannot be read.
    """
    path, configuration = on_this_machine(source)
    suffix = file_suffix(path)
    if path.exists() or suffix == ".csv":  # there or not: the reader says which
        name, found = path.stem, _local(path, suffix, configuration, named)
    elif _looks_like_a_file(source, suffix):
        raise SettingsError(f"Cannot read {path}: No such file or directory.")
    else:
        name, found = source, {part: _Part.of(rows, named) for part, rows in hub_parts(source).items()}
    columns = {column: word for part in found.values() for column, word in part.columns.items()}
    lines = {part: one.lines for part, one in found.items() if one.lines is not None}
    rows = {part: one.rows for part, one in found.items()}
    separator = next((one.separator for one in found.values()), ",")
    return Table(name, columns, rows, lines, str(path) if lines else str(source), separator)


def on_this_machine(source: str) -> tuple[Path, str]:
    """(path, configuration) of ``FOLDER:CONFIGURATION``; the configuration is empty where `source` is a path as it stands."""
    path = user_path(source)
    before, colon, configuration = source.rpartition(":")
    if colon and before and not path.exists() and user_path(before).is_dir():
        return user_path(before), configuration
    return path, ""


def is_source(text: str) -> bool:
    """Whether `text` can be meant for data rather than for the name of a task: a path, or ``owner/name`` of the hub."""
    try:
        path = user_path(text)
        return "/" in text or os.sep in text or file_suffix(path) in BUILDERS or on_this_machine(text)[0].exists()
    except (OSError, ValueError, SettingsError):
        return False


def hub_is_off() -> bool:
    """Whether the user has told huggingface_hub to stay off the network (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def hub_parts(source: str) -> dict[str, Dataset]:
    """Every split of the hub's data set ``owner/name`` (``owner/name:configuration``). Raises SettingsError in one sentence."""
    from datasets import load_dataset

    name, _, configuration = source.partition(":")
    with told(source, "give a file, a folder, or connect to fetch it from the hub"):
        return dict(load_dataset(name, configuration or None, cache_dir=_cache()))


def _local(path: Path, suffix: str, configuration: str, named: bool) -> dict[str, _Part]:
    if path.is_dir():
        return _of_folder(path, configuration, named)
    if path.exists() and not path.is_file():
        raise SettingsError(f"{path} is no plain file.")
    if suffix not in BUILDERS:
        advice = "; unpack it first" if suffix in PACKED else ""
        raise SettingsError(f"{path} is none of the kinds that are read: {', '.join(BUILDERS)}{advice}.")
    return {"": _of_files([path], named)}


def _of_folder(path: Path, configuration: str, named: bool) -> dict[str, _Part]:
    """A folder that `datasets` saved, a repository of the hub whose card says what is what, or a folder of files."""
    known = card_configurations(path)
    if configuration in known or (not configuration and len(known) == 1):
        _refuse_null_rows(data_files_below(path))
        parts = _loaded(path, configuration or known[0])
        return {part: _Part.of(rows, named) for part, rows in parts.items()}
    if known and not configuration:
        raise SettingsError(f"{path} holds several data sets, {', '.join(known)}; say which: {path}:{known[0]}.")
    inside = data_folder(path, configuration)
    if is_saved(inside):
        return {part: _Part.of(rows, named) for part, rows in _saved(inside).items()}
    return {split: _of_files(files, named) for split, files in split_files(inside).items()}


def _saved(path: Path) -> dict[str, Dataset]:
    from datasets import DatasetDict, load_from_disk

    with told(str(path), KINDS):
        saved = load_from_disk(str(path))
    return dict(saved) if isinstance(saved, DatasetDict) else {"": saved}


def _loaded(path: Path, configuration: str) -> dict[str, Dataset]:
    from datasets import load_dataset

    with told(str(path), KINDS):
        return dict(load_dataset(str(path), configuration, cache_dir=_cache()))


def _of_files(files: Sequence[Path], named: bool) -> _Part:
    """The rows of `files`, all of one kind and of one split."""
    kind = BUILDERS[file_suffix(files[0])]
    if kind == "csv" and not any(file.suffix == ".zst" for file in files):
        return _of_csv(files)
    from datasets import load_dataset

    _refuse_empty(files)
    _refuse_null_rows(files)
    options: dict[str, Any] = {"sample_by": "paragraph"} if kind == "text" else {}
    exact = [glob.escape(str(file)) for file in files]  # a name with brackets is no pattern
    with told(", ".join(map(str, files[:1])), KINDS):
        return _Part.of(load_dataset(kind, data_files=exact, split="train", cache_dir=_cache(), **options), named)


def _of_csv(files: Sequence[Path]) -> _Part:
    read = [csv_rows(file) for file in files]
    columns = read[0].columns
    for file, other in zip(files, read, strict=True):
        if other.columns != columns:
            raise SettingsError(
                f"{file} has the columns {', '.join(other.columns)}, and {files[0].name} has {', '.join(columns)}; they are one split."
            )
    rows = [row for part in read for row in part.rows]
    return _Part(dict.fromkeys(columns, "text"), rows, read[0].lines if len(files) == 1 else None, read[0].separator)


def _refuse_empty(files: Sequence[Path]) -> None:
    """Raises SettingsError where there is not a byte in any of `files`, of which `datasets` says nothing that can be read."""
    if all(file.is_file() and file.stat().st_size == 0 for file in files):
        raise SettingsError(f"{files[0]} is empty.")


def _refuse_null_rows(files: Iterable[Path]) -> None:
    """Raises SettingsError for a JSON file with a row that is ``null``: pyarrow ends the process where it is the first, and takes
    it for a row of nothing elsewhere. Compressed files are looked into as well."""
    for path in files:
        if BUILDERS.get(file_suffix(path)) != "json" or path.suffix == ".zst" or not path.is_file():
            continue
        lines_are_rows, first = file_suffix(path) != ".json", True
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                row = line.removeprefix(b"\xef\xbb\xbf").strip()
                if row.startswith(b"null") and (first or (lines_are_rows and row == b"null")):
                    raise SettingsError(f"{path} holds null in place of a row in line {number}; remove it.")
                first = first and not row
                if not first and not lines_are_rows:
                    break


def _plain(dataset: Dataset) -> list[dict[str, Any]]:
    """Rows as plain Python values, the names of class labels in place of their numbers."""
    from datasets import ClassLabel

    named = {name: feature for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)}
    rows = dataset.to_list()
    for name, feature in named.items():
        for row in rows:
            number = row[name]
            row[name] = None if number is None or number < 0 else feature.int2str(number)
    return rows


def type_word(features: Features, column: str) -> str:
    """What a column holds, in a word or two."""
    from datasets import ClassLabel, Value

    feature = features[column]
    if isinstance(feature, ClassLabel):
        return f"{feature.num_classes} classes"
    if isinstance(feature, Value):
        kind = str(feature.dtype)
        return "text" if "string" in kind else "number" if kind.startswith(("int", "uint", "float")) else kind
    return "list" if isinstance(feature, list) or type(feature).__name__ in ("List", "LargeList", "Sequence") else "record"


@contextlib.contextmanager
def told(source: str, advice: str) -> Iterator[None]:
    """Turns what `datasets` raises about `source` into one sentence, and keeps its bars off the screen."""
    import datasets

    datasets.disable_progress_bars()
    said = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs of a file that it cannot read is in the sentence
    try:
        yield
    except SettingsError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        first = lines[0].rstrip(".") if lines else type(error).__name__
        raise SettingsError(f"Cannot read {source}: {first[:200]}; {advice}.") from None
    finally:
        datasets.logging.set_verbosity(said)
        datasets.enable_progress_bars()


def _cache() -> str:
    return str(cache_dir("datasets"))


def _looks_like_a_file(source: str, suffix: str) -> bool:
    return suffix in BUILDERS or source.startswith((".", "/", "~")) or source.count("/") != 1
