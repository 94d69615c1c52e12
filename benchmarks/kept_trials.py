"""Trials kept as one line of JSON each, so that what was cut off goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path


def read(file: Path) -> list[dict]:
    """The trials in `file`; a last line cut off by a crash is left out."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def append(file: Path, record: dict) -> None:
    """Adds a trial to `file`, on a line of its own even where a crash cut off the one before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cut = file.is_file() and file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as lines:
        lines.write("\n" * cut + json.dumps(record) + "\n")
