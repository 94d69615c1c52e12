"""One door for data in rows: a CSV, JSON, JSON-lines, Parquet or text file, a folder of them, a saved `datasets` folder, or a hub id.

All but CSV files are read by `datasets`; those are read by `csv_file`, which is stricter. Nothing here knows what a task is.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzers.compare.tasks.csv_file import csv_rows
from loraxs_core.errors import SettingsError
from loraxs_core.paths import cache_dir, user_path

if TYPE_CHECKING:
    from datasets import Dataset, Features

BUILDERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
SAVED = ("state.json", "dataset_dict.json")  # of `datasets`' save_to_disk
SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "eval": "validation", "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows as they stand. name: what to call it. columns: name -> what it holds. parts: rows by the name of their split, ``""``
    where the source has none. lines: where each row of a CSV file ends; rows of other sources are counted."""

    name: str
    columns: Mapping[str, str]
    parts: Mapping[str, list[dict[str, Any]]]
    lines: Mapping[str, list[int]] = field(default_factory=dict)
    source: str = ""

    def where(self, part: str, index: int) -> str:
        """Names a row: ``line 7``, or ``row 6 of train``."""
        if part in self.lines:
            return f"line {self.lines[part][index]}"
        return f"row {index + 1}" + (f" of {part}" if part else "")


def read_table(source: str) -> Table:
    """The rows of `source`: a file, a folder, or a hub id such as ``owner/name`` or ``owner/name:configuration``.

    What is on this machine goes before what the hub has. Raises SettingsError in one sentence for what cannot be read.
    """
    path = user_path(source)
    suffix = _suffix(path)
    if suffix == ".csv" and not path.name.endswith(COMPRESSED):  # there or not: the reader says which
        columns, rows, lines = csv_rows(path)
        return Table(path.stem, dict.fromkeys(columns, "text"), {"": rows}, {"": lines}, str(path))
    if path.exists():
        name, found = path.stem, _local(path, suffix)
    elif _looks_like_a_file(source, suffix):
        raise SettingsError(f"Cannot read {path}: No such file or directory.")
    else:
        name, found = source, hub_parts(source)
    features = next(iter(found.values())).features
    parts = {part: _plain(dataset) for part, dataset in found.items()}
    return Table(name, {column: type_word(features, column) for column in features}, parts, source=str(source))


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


def _local(path: Path, suffix: str) -> dict[str, Dataset]:
    from datasets import DatasetDict, load_dataset, load_from_disk

    with told(str(path), "give a CSV, JSON, JSON-lines, Parquet or text file, or a folder of them"):
        if path.is_dir():
            if any((path / name).is_file() for name in SAVED):
                saved = load_from_disk(str(path))
                return dict(saved) if isinstance(saved, DatasetDict) else {"": saved}
            return _of_folder(path)
        if not path.is_file():
            raise SettingsError(f"{path} is no plain file.")
        if suffix not in BUILDERS:
            raise SettingsError(f"{path} is none of the kinds that are read: {', '.join(BUILDERS)}.")
        _refuse_null_rows([path])
        options: dict[str, Any] = {"sample_by": "paragraph"} if suffix == ".txt" else {}
        return {"": load_dataset(BUILDERS[suffix], data_files=str(path), split="train", cache_dir=_cache(), **options)}


def _refuse_null_rows(files: Iterable[Path]) -> None:
    """Raises SettingsError for a JSON file with a row that is ``null``: pyarrow ends the process where it is the first, and takes
    it for a row of nothing elsewhere. Compressed files are looked into as well."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    for path in files:
        if BUILDERS.get(_suffix(path)) != "json" or path.suffix == ".zst":
            continue
        lines_are_rows, first = _suffix(path) != ".json", True
        with openers.get(path.suffix, open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                row = line.removeprefix(b"\xef\xbb\xbf").strip()
                if row.startswith(b"null") and (first or (lines_are_rows and row == b"null")):
                    raise SettingsError(f"{path} holds null in place of a row in line {number}; remove it.")
                first = first and not row
                if not first and not lines_are_rows:
                    break


def _of_folder(path: Path) -> dict[str, Dataset]:
    """A folder of files called after their splits (``train.jsonl``, ``dev.parquet``), or of files of one kind without such names."""
    from datasets import load_dataset

    files = sorted(file for file in path.iterdir() if file.is_file() and _suffix(file) in BUILDERS)
    if not files:
        raise SettingsError(f"{path} holds no {', '.join(BUILDERS)} file.")
    kinds = {BUILDERS[_suffix(file)] for file in files}
    if len(kinds) > 1:
        raise SettingsError(f"{path} holds files of different kinds ({', '.join(sorted(kinds))}); leave those of one in it.")
    _refuse_null_rows(files)
    named: dict[str, list[str]] = {}
    for file in files:
        word = next(
            (part for part in file.name.lower().replace("-", ".").replace("_", ".").split(".") if part in SPLIT_NAMES), ""
        )
        named.setdefault(SPLIT_NAMES.get(word, ""), []).append(str(file))
    if "" in named and len(named) > 1:
        odd = Path(named[""][0]).name
        raise SettingsError(f"{path} holds {odd} beside files called after their splits; call it train, validation or test.")
    if "" in named:
        return {"": load_dataset(kinds.pop(), data_files=named[""], split="train", cache_dir=_cache())}
    return dict(load_dataset(kinds.pop(), data_files=named, cache_dir=_cache()))


def _split_name(file: Path) -> str:
    """The split that a file is called after, as in ``reviews-dev.jsonl``; MNLI's two keep their names. Empty for none."""
    stem = file.name.lower().split(".")[0]
    if stem.endswith("matched"):
        return stem
    return next((SPLIT_NAMES[word] for word in stem.replace("-", "_").split("_") if word in SPLIT_NAMES), "")


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
    try:
        yield
    except SettingsError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        first = lines[0].rstrip(".") if lines else type(error).__name__
        raise SettingsError(f"Cannot read {source}: {first[:200]}; {advice}.") from None
    finally:
        datasets.enable_progress_bars()


def _cache() -> str:
    return str(cache_dir("datasets"))


def _suffix(path: Path) -> str:
    name = path.name
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return os.path.splitext(name)[1].lower()


def _looks_like_a_file(source: str, suffix: str) -> bool:
    return suffix in BUILDERS or source.startswith((".", "/", "~")) or source.count("/") != 1
