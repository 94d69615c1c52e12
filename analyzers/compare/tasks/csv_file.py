"""A CSV file as it stands, read strictly: what is not well-formed is refused with its line, and nothing is renamed.

Fields are separated by commas, or by semicolons, tabs or bars where the first line has these and no comma, as Excel writes them where the
comma is the decimal point; a first line ``sep=;`` says so itself.
"""

from __future__ import annotations

import csv
import lzma
import re
import sys
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from analyzers.compare.tasks.kinds import OPENERS, file_suffix
from loraxs_core.errors import SettingsError

SEPARATORS = (",", ";", "\t", "|")
_QUOTED = re.compile(r'"[^"]*"')


@dataclass(frozen=True)
class CsvRows:
    """columns: their names. lines: where each row ends. separator: what stands between fields."""

    columns: list[str]
    rows: list[dict[str, str]]
    lines: list[int]
    separator: str


def csv_rows(file: Path) -> CsvRows:
    """Every row, its fields and the columns' names stripped; columns without a name are left out where nothing is in them. Raises
    SettingsError naming the line that is wrong.

    A compressed file is read as what it holds; a field may be as long as it likes.
    """
    if file.exists() and not file.is_file():
        raise SettingsError(f"{file} is no plain file.")
    reader = None
    known = csv.field_size_limit(sys.maxsize)
    try:
        with OPENERS.get(file.suffix, open)(file, "rt", encoding="utf-8-sig", newline="") as stream:
            separator, said = _separator(stream, file_suffix(file))
            reader = csv.reader(stream, strict=True, delimiter=separator)
            filled = (row for row in reader if row)
            names = [name.strip() for name in next(filled, [])]
            if not names:
                raise SettingsError(f"{file} is empty.")
            if twice := [name for name, count in Counter(names).items() if count > 1 and name]:
                raise SettingsError(f"{file} has two columns called {twice[0]!r}; rename one.")
            found = [(reader.line_num + said, _checked(file, reader.line_num + said, row, names)) for row in filled]
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise SettingsError(f"Cannot read {file}: {getattr(error, 'strerror', None) or error}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is not UTF-8 text; save it as UTF-8.") from None
    except csv.Error as error:
        line = max(1, reader.line_num if reader is not None else 1)
        raise SettingsError(f"{file} is not a well-formed CSV file near line {line}: {error}.") from None
    finally:
        csv.field_size_limit(known)
    nameless = [place for place, name in enumerate(names) if not name]
    empty = {place for place in nameless if not any(row[place] for _, row in found)}
    if len(nameless) - len(empty) > 1:
        raise SettingsError(f"{file} has several columns without a name; name them in its first line.")
    kept = [(place, name) for place, name in enumerate(names) if place not in empty]
    rows = [{name: row[place] for place, name in kept} for _, row in found]
    return CsvRows([name for _, name in kept], rows, [line for line, _ in found], separator)


def _separator(stream: TextIO, suffix: str) -> tuple[str, int]:
    """(what separates the fields of `stream`, how many lines were read that are no rows); `stream` stands where the rows begin."""
    first = next((line for line in iter(stream.readline, "") if line.strip()), "").strip("\r\n")
    if first.lower().startswith("sep=") and len(first) == len("sep=;"):
        return first[-1], 1
    stream.seek(0)
    if suffix == ".tsv":
        return "\t", 0
    outside = _QUOTED.sub("", first)
    return max(SEPARATORS, key=lambda one: (one == "," and "," in outside, outside.count(one))), 0


def _checked(file: Path, line: int, row: list[str], names: list[str]) -> list[str]:
    if len(row) != len(names):
        raise SettingsError(f"{file}, line {line}: expected {len(names)} fields ({', '.join(names)}).")
    return [field.strip() for field in row]
