"""Data frames to files, by the file's ending."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.errors import SettingsError
from loraxs_core.paths import atomic_file

if TYPE_CHECKING:
    import pandas as pd


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Writes `frame` as CSV, Parquet or JSON (records). Raises SettingsError for another ending, RunError when it cannot write."""
    writers = {
        ".csv": lambda target: frame.to_csv(target, index=False),
        ".parquet": lambda target: frame.to_parquet(target, index=False),
        ".json": lambda target: frame.to_json(target, orient="records", indent=2),
    }
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise SettingsError(f"Cannot tell the format of {path}: its name should end in .csv, .parquet or .json.")
    with atomic_file(path) as temporary:
        writer(temporary)
