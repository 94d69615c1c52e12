"""A CSV file as it stands, read strictly: what is not well-formed is refused with its line, and nothing is guessed or renamed."""

from __future__ import annotations

import csv
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from analyzers.compare.tasks.kinds import OPENERS
from loraxs_core.errors import SettingsError


def csv_rows(file: Path) -> tuple[list[str], list[dict[str, str]], list[int]]:
    """(columns, rows, the line that each row ends at); every field stripped. Raises SettingsError naming the line that is wrong.

    A compressed file is read as what it holds; a field may be as long as it likes.
    """
    if file.exists() and not file.is_file():
        raise SettingsError(f"{file} is no plain file.")
    reader = None
    known = csv.field_size_limit(sys.maxsize)
    try:
        with OPENERS.get(file.suffix, open)(file, "rt", encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = list(reader.fieldnames or [])
            if twice := [name for name, count in Counter(columns).items() if count > 1]:
                raise SettingsError(f"{file} has two columns called {twice[0]!r}; rename one.")
            rows, lines = [], []
            for row in reader:
                rows.append(_checked(file, reader.line_num, row, columns))
                lines.append(reader.line_num)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise SettingsError(f"Cannot read {file}: {getattr(error, 'strerror', None) or error}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is not UTF-8 text; save it as UTF-8.") from None
    except csv.Error as error:
        line = reader.line_num if reader is not None else 1
        raise SettingsError(f"{file} is not a well-formed CSV file near line {line}: {error}.") from None
    finally:
        csv.field_size_limit(known)
    return columns, rows, lines


def _checked(file: Path, line: int, row: Mapping[str | None, str | None], columns: list[str]) -> dict[str, str]:
    if None in row or any(value is None for value in row.values()):
        raise SettingsError(f"{file}, line {line}: expected {len(columns)} fields ({', '.join(columns)}).")
    return {str(name): str(value).strip() for name, value in row.items()}
