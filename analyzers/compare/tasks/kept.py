"""Data that was handed over as bytes (dropped onto a page), kept in the user's data folder so that a run and a command can name it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from analyzers.compare.tasks.kinds import BUILDERS, file_suffix
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.names import refuse_name, short_name
from loraxs_core.paths import atomic_file, data_dir


def keep_data(name: str, content: bytes) -> Path:
    """Keeps `content` in ``data/DIGEST/NAME`` and returns that path; the same bytes under the same name are kept once.

    Raises SettingsError for a kind of file that no task is read from, RunError where it cannot be written or reads back otherwise.
    """
    plain = re.sub(r"[^\w.-]+", "-", Path(name.replace("\\", "/")).name, flags=re.ASCII).lstrip(".-") or "data"
    suffix = file_suffix(Path(plain))
    if suffix not in BUILDERS:
        raise SettingsError(f"{name} is none of the kinds that are read: {', '.join(BUILDERS)}.")
    if not content:
        raise SettingsError(f"{name} is empty; choose a file with rows in it.")
    refuse_name(plain)
    digest = hashlib.sha256(content).hexdigest()
    stem = plain[: plain.lower().rindex(suffix)]
    path = data_dir("data", digest[:16]) / (short_name(stem or "data") + plain[len(stem) :])
    if not (path.is_file() and _digest(path) == digest):
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
        if _digest(path) != digest:
            raise RunError(f"{path} does not hold what was written to it; look at the disk, and drop the file again.")
    return path


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
