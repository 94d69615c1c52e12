"""The kinds of file that data is read from, by their endings."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # of those, Python's own


def file_suffix(path: Path) -> str:
    """The ending that says what kind of file it is, in small letters; that of a compressed file is the one below."""
    name = path.name
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return os.path.splitext(name)[1].lower()
