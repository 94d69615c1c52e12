"""Where a result goes: nothing that is there already is overwritten unless the person says so."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from loraxs_core.errors import RunError, SettingsError
from loraxs_core.names import refuse_name
from loraxs_core.paths import refuse_unwritable, user_path

Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there already.")]
ADAPTER, CHECKPOINT = "adapter_config.json", "config.json"  # the file that tells a folder's kind
KINDS = {ADAPTER: "adapter", CHECKPOINT: "checkpoint"}


def refuse_file(path: Path, endings: Sequence[str] = (), *, force: bool = False) -> None:
    """Raises, before the work that fills it, what would be raised when a file at `path` is written.

    endings: it has to have one of them, where some are given. Raises SettingsError for another one and for a name that is none,
    RunError for what exists (but for a file, with `force`) and for a place where nothing can be written.
    """
    if endings and path.suffix.lower() not in endings:
        *others, last = endings
        if not others:
            raise SettingsError(f"{path} would be a file of no known kind: its name should end in {last}.")
        raise SettingsError(f"Cannot tell the format of {path}: its name should end in {', '.join(others)} or {last}.")
    refuse_name(path)
    if os.path.lexists(path) and not path.is_dir():  # of a folder, writing says more
        if path.exists() and not path.is_file():
            raise RunError(f"{path} is no file to write to; choose another name.")
        if not force:
            raise RunError(f"{path} exists already; choose another name, or overwrite it with --force.")
    refuse_unwritable(path)


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike, marker: str, *, reads: Sequence[str | os.PathLike] = (), force: bool = False
) -> Iterator[Path]:
    """A path for the folder that the block makes, which stands at `path` when the block has ended.

    `path` is to be a new folder, an empty one or, with `force`, one of the kind that `marker` tells: that one stays whole until the
    new one is. A link to a folder stands for the folder. reads: what the block reads, which it cannot replace. Raises RunError where
    the folder cannot be had, before the block begins.
    """
    folder = user_path(path)
    refuse_name(folder)
    folder = folder.resolve() if folder.is_symlink() else folder
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        yield folder
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file; choose the name of a new folder.")
    if not (folder / marker).is_file():
        raise RunError(f"{folder} is not empty and holds no {KINDS[marker]}; choose another folder.")
    if not force:
        raise RunError(f"{folder} holds {_a(KINDS[marker])} already; choose another folder, or overwrite it with --force.")
    for source in map(user_path, reads):
        if source.exists() and (
            source.resolve().is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(source.resolve())
        ):
            raise RunError(f"{folder} is what is read here, or holds it; choose another folder.")
    try:
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise RunError(f"Cannot write beside {folder}: {error.strerror or error}; choose another folder.") from error
    try:
        yield beside / "new"
        os.replace(folder, beside / "old")
        os.replace(beside / "new", folder)
    finally:
        if not folder.exists():
            os.replace(beside / "old", folder)
        shutil.rmtree(beside, ignore_errors=True)


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
