"""`loraxs cache`: what is kept on this machine so that it is not computed or fetched twice, and how to be rid of it."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from app.options.common import Json
from app.terminal import print_json, print_table, say
from app.units import bytes_text
from loraxs_core import cache_room
from loraxs_core.errors import SettingsError
from loraxs_core.paths import cache_dir
from loraxs_core.progress import seconds

_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def run(
    kind: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this kind; may be given again. {', '.join(cache_room.KINDS)}."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only what was computed from this model, as the list names it.")] = None,
    unused_for: Annotated[str, typer.Option(help="Only what was not used for so long: 12h, 30d, 8w.")] = "0d",
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove it. Samples, which were downloaded, only with --kind samples.")
    ] = False,
    limit: Annotated[
        str | None,
        typer.Option(help="From now on keep below this size (20GB, none); what was used longest ago goes first, samples stay."),
    ] = None,
    json: Json = False,
) -> None:
    """List what is kept on this machine by kind and model, with its size; clear it, or set a limit.

    All of it can be computed or fetched again. The environment variable LORAXS_CACHE names the folder.
    """
    age = _age(unused_for)
    removed: list[cache_room.Item] = []
    if limit is not None:
        removed += cache_room.set_limit(cache_room.size(limit))
    if clear:
        removed += cache_room.clear(kind or (), unused_for=age, model=model)
    chosen = cache_room.chosen(cache_room.items(), kind or tuple(cache_room.KINDS), unused_for=age, model=model)
    groups, most = cache_room.groups(chosen), cache_room.limit()
    if json:
        print_json(
            {
                "folder": str(cache_dir()),
                "bytes": sum(item.bytes for item in chosen),
                "limit": most,
                "kept": groups,
                "removed": {"entries": len(removed), "bytes": sum(item.bytes for item in removed)},
            }
        )
        return
    now = time.time()
    rows = [
        (one.kind, one.model or "—", f"{one.entries:,}", bytes_text(one.bytes), f"{seconds(max(0.0, now - one.used))} ago")
        for one in groups
    ]
    print_table(
        f"{cache_dir()}: {bytes_text(sum(item.bytes for item in chosen))}",
        ("kind", "model", "entries", "size", "last used"),
        rows,
        note=f"Limit without samples: {bytes_text(most) if most is not None else 'none'}. "
        + "; ".join(
            f"{name}: {meaning}" for name, meaning in cache_room.KINDS.items() if any(one.kind == name for one in groups)
        ),
    )
    if clear or removed:
        say(f"Removed {len(removed):,} entries, {bytes_text(sum(item.bytes for item in removed))}.")


def _age(text: str) -> float:
    """Seconds from ``30d``. Raises SettingsError."""
    match = re.fullmatch(r"(\d{1,6})\s*([mhdw])", text.strip().lower())
    if match is None:
        raise SettingsError(f"{text!r} is no age; write 90m, 12h, 30d or 8w.")
    return int(match[1]) * _SECONDS[match[2]]
