"""Choices that outlive a session: a small file in the user's data folder, so that the page opens tomorrow where it was closed today."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from loraxs_core.paths import atomic_file, data_dir

Kind = TypeVar("Kind")


def remembered(name: str, kind: type[Kind]) -> Kind | None:
    """What `remember` kept under `name`, in this session or an earlier one; None where it is not of that kind."""
    value = _all().get(name)
    return value if isinstance(value, kind) else None


def remember(**said: Any) -> None:
    """Keeps values that JSON has, by name; what is kept under other names stays."""
    document = _all() | said
    with atomic_file(data_dir() / "page.json") as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")


def _all() -> dict:
    try:
        said = json.loads((data_dir() / "page.json").read_text(encoding="utf-8"))
        return said if isinstance(said, dict) else {}
    except (OSError, ValueError):
        return {}
