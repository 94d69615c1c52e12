"""One style for everything that can be added: a folder, one file an entry, found by itself. Nothing has to be named elsewhere."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def named(folder: str | Path, attribute: str, first: Sequence[str] = ()) -> list[str]:
    """The files of `folder` that define `attribute`, in the order of `found`, as names with dashes; read, not imported: for a help text at once."""
    files = [
        file.stem for file in Path(folder).glob("*.py") if re.search(rf"^{attribute} = ", file.read_text("utf-8"), re.MULTILINE)
    ]
    return [file.replace("_", "-") for file in sorted(files, key=_order(first))]


def _order(first: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    return lambda file: (first.index(file) if file in first else len(first), file)


def found(package: str, attribute: str, first: Sequence[str] = ()) -> dict[str, Any]:
    """Name -> entry, for every file of the folder `package` that defines `attribute`: one entry, or several as a tuple or by name.

    An entry's name is its ``name``, or its file's where it has none; a mapping gives the names itself. first: files that lead, in
    this order; the others follow by name. Raises ValueError when two entries have one name.

    >>> list(found("analyzers.ranks.strategies", "STRATEGY", first=["uniform"]))[:2]
    ['uniform', 'activation']
    """
    files = [file.name for file in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    entries: dict[str, Any] = {}
    for file in sorted(files, key=_order(first)):
        given = getattr(importlib.import_module(f"{package}.{file}"), attribute, ())
        if not isinstance(given, dict):
            given = {getattr(one, "name", file): one for one in (given if isinstance(given, tuple) else (given,))}
        if twice := entries.keys() & given.keys():
            raise ValueError(f"{package} has two entries called {min(twice)!r}; {file}.py is one of their files.")
        entries |= given
    return entries
