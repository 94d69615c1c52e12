"""Data frames to files, by the file's ending."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from analyzers.spreadsheet import csv
from app.outputs import refuse_file
from loraxs_core.paths import atomic_file

if TYPE_CHECKING:
    import pandas as pd


TABLES = (".csv", ".parquet", ".json")


def write_table(frame: pd.DataFrame, path: Path, *, force: bool = False) -> None:
    """Writes `frame` as CSV, Parquet or JSON (records). As `refuse_file` raises; force: over what is there."""
    writers = {
        ".csv": lambda target: target.write_text(csv(frame), encoding="utf-8", newline=""),
        ".parquet": lambda target: frame.to_parquet(target, index=False),
        ".json": lambda target: frame.to_json(target, orient="records", indent=2),
    }
    refuse_file(path, TABLES, force=force)
    with atomic_file(path) as temporary:
        writers[path.suffix.lower()](temporary)
