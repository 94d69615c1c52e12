"""Names that files and folders can have on every system the work may be carried to."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from xxhash import xxh3_64_hexdigest

from loraxs_core.errors import SettingsError

# Windows takes these for devices, whatever ending follows, in any case
# (https://learn.microsoft.com/windows/win32/fileio/naming-a-file).
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³"
}


def refuse_name(name: str | os.PathLike) -> None:
    """Raises SettingsError where the last part of `name` is no name for something new.

    That is a device of Windows (``CON``, ``nul.json``), one with characters that cannot be seen, or one that ends in a dot or a
    space, which Windows drops.
    """
    last = Path(name).name
    if last.partition(".")[0].rstrip(" ").casefold() in _DEVICES:
        raise SettingsError(f"{last} is the name of a device on some systems; choose another name.")
    if any(unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in last):
        raise SettingsError(f"{last!r} has characters in it that cannot be seen; choose another name.")
    if last.endswith((" ", ".")) and last not in (".", ".."):
        raise SettingsError(
            f"{last!r} ends in a {'dot' if last.endswith('.') else 'space'}, which some systems drop; choose another name."
        )


def short_name(name: str, most: int = 80) -> str:
    """`name` as a part of the name of a file, in `most` bytes: a longer one is cut, and told apart by a digest of the whole.

    >>> short_name("a-plan")
    'a-plan'
    """
    raw = name.encode("utf-8", errors="replace")
    if len(raw) <= most:
        return name
    return f"{raw[: most - 9].decode('utf-8', errors='ignore')}-{xxh3_64_hexdigest(raw)[:8]}"
