"""Reading small JSON documents that anything may have happened to: never a hang, a traceback or a gigabyte in memory."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from loraxs_core.errors import RunError

MOST_BYTES = 32 * 1024**2  # a sweep with twenty plans of a model with 1,500 layers needs a third of it


def read_bytes(path: Path, most: int = MOST_BYTES, *, tail: bool = False) -> bytes:
    """The bytes of the plain file `path`; with `tail` the last `most` of a larger one.

    Raises FileNotFoundError when there is none, RunError in one sentence for a pipe, a folder, or more than `most` bytes.
    """
    try:
        # Opened without waiting: a pipe would hold whoever reads it until somebody writes.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror or error}.") from None
    except ValueError:  # a NUL among its characters
        raise RunError(f"Cannot read {path}: no file can have such a name.") from None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise RunError(f"{path} is no plain file.")
        if about.st_size > most:
            if not tail:
                raise RunError(f"{path} is damaged: {about.st_size:,} bytes are more than such a file can have.")
            os.lseek(handle, about.st_size - most, os.SEEK_SET)
        with open(handle, "rb", closefd=False) as file:
            return file.read(most)
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror or error}.") from None
    finally:
        os.close(handle)


def open_to_append(path: Path) -> BinaryIO:
    """`path`, made where there is none, to be written at its end. Raises OSError; a pipe that nobody reads is one at once."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return open(os.open(path, flags, 0o666), "ab")


def parsed(text: str | bytes) -> Any:
    """The value that the JSON `text` holds. Raises ValueError for what is none, for a key that stands twice, since nobody can tell
    which is meant, and for nesting beyond any document."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} stands in it twice")
        found[key] = value
    return found


def read_object(path: Path, most: int = MOST_BYTES) -> dict:
    """The JSON object in `path`. Raises FileNotFoundError when there is no such file, RunError when it holds anything else."""
    try:
        document = parsed(read_bytes(path, most).decode("utf-8"))
    except ValueError:
        raise RunError(f"{path} is damaged: it is not JSON that this program writes.") from None
    if not isinstance(document, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object.")
    return document
