"""One style for everything that can be added: a folder, one file an entry, found by itself. Nothing has to be named elsewhere."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any


def found(package: str, attribute: str, first: Sequence[str] = ()) -> dict[str, Any]:
    """Name -> entry, for every file of the folder `package` that defines `attribute`: one entry, or several as a tuple or by name.

    An entry's name is its ``name``, or its file's where it has none; a mapping gives the names itself. first: names that lead, in this order; the others
    follow in the order of their files. Raises ValueError when two entries have one name.

    >>> list(found("analyzers.ranks.strategies", "STRATEGY", first=("role",)))
    ['role', 'energy', 'uniform']
    """
    entries: dict[str, Any] = {}
    for file in sorted(pkgutil.iter_modules(importlib.import_module(package).__path__), key=lambda file: file.name):
        given = getattr(importlib.import_module(f"{package}.{file.name}"), attribute, ())
        if not isinstance(given, dict):
            given = {getattr(one, "name", file.name): one for one in (given if isinstance(given, tuple) else (given,))}
        if twice := entries.keys() & given.keys():
            raise ValueError(f"{package} has two entries called {min(twice)!r}; {file.name}.py is one of their files.")
        entries |= given
    leading = [name for name in first if name in entries]
    return {name: entries[name] for name in (*leading, *(name for name in entries if name not in leading))}
