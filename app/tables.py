"""Data frames to files, by the file's ending."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from analyzers.spreadsheet import csv
from loraxs_core.errors import SettingsError
from loraxs_core.paths import atomic_file, refuse_unwritable

if TYPE_CHECKING:
    import pandas as pd


TABLES = (".csv", ".parquet", ".json")


def refuse_target(path: Path, endings: tuple[str, ...] = TABLES) -> None:
    """Raises, before the work that fills it, what would be raised when a file at `path` is written.

    SettingsError when its name has none of `endings`, RunError when nothing can be written there.
    """
    if path.suffix.lower() not in endings:
        *others, last = endings
        if not others:
            raise SettingsError(f"{path} would be a file of no known kind: its name should end in {last}.")
        raise SettingsError(f"Cannot tell the format of {path}: its name should end in {', '.join(others)} or {last}.")
    refuse_unwritable(path)


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Writes `frame` as CSV, Parquet or JSON (records). Raises SettingsError for another ending, RunError when it cannot write."""
    writers = {
        ".csv": lambda target: target.write_text(csv(frame), encoding="utf-8", newline=""),
        ".parquet": lambda target: frame.to_parquet(target, index=False),
        ".json": lambda target: frame.to_json(target, orient="records", indent=2),
    }
    refuse_target(path)
    with atomic_file(path) as temporary:
        writers[path.suffix.lower()](temporary)
