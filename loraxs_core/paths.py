"""Where things live on the user's machine, and writing files so that a crash leaves no half of one.

Downloads and spectra go to the user's cache folder, runs to the user's data folder (platformdirs); both can be moved with
the environment variables ``LORAXS_CACHE`` and ``LORAXS_DATA``. Nothing is written to the working tree.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from loraxs_core.errors import RunError, SettingsError

APP = "loraxs-workbench"
# As `atomic_file` and `atomic_folder` name what they are writing, and safetensors what it writes inside of it.
_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}|\.tmp[A-Za-z0-9]{6}")


def user_path(path: str | os.PathLike) -> Path:
    """`path` as the user wrote it, with ``~`` for the home folder. Raises SettingsError for the home of nobody on this machine."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SettingsError(f"{Path(path).parts[0]} is nobody's home folder on this machine; give another path.") from None


def cache_dir(*parts: str) -> Path:
    """The user's cache folder for this program (created), or a folder below it."""
    root = os.environ.get("LORAXS_CACHE") or platformdirs.user_cache_dir(APP, appauthor=False)
    return _made(user_path(root).joinpath(*parts), "LORAXS_CACHE")


def data_dir(*parts: str) -> Path:
    """The user's data folder for this program (created), or a folder below it; runs live here."""
    root = os.environ.get("LORAXS_DATA") or platformdirs.user_data_dir(APP, appauthor=False)
    return _made(user_path(root).joinpath(*parts), "LORAXS_DATA")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends without an error and removed otherwise.

    A reader sees the old file or the whole new one; with `durable` also after a loss of power, because the file and its folder
    have reached the disk when the block has ended. Raises RunError in one sentence when the disk is full or the folder cannot be
    written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_UMASK)
        if durable:
            _to_disk(temporary)
        os.replace(temporary, path)
        if durable:
            _to_disk(path.parent)
    except Exception as error:
        _refuse_if_not_written(path, error)
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `path`, moved to it when the block ends without an error and removed otherwise.

    A link to a folder stands for the folder. Raises RunError when `path` already exists and is not an empty folder, or cannot be
    written.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    temporary = None
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise RunError(f"{path} already exists; choose another folder or remove it.")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary
        for file in temporary.rglob("*"):  # safetensors writes files that only their owner can read
            os.chmod(file, (0o777 if file.is_dir() else 0o666) & ~_UMASK)
            _to_disk(file)
        os.chmod(temporary, 0o777 & ~_UMASK)
        _to_disk(temporary)
        os.replace(temporary, path)
        _to_disk(path.parent)
    except Exception as error:
        _refuse_if_not_written(path, error)
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that were killed were writing in `folder`. Only for whoever knows that nobody else writes there."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if not _UNFINISHED.fullmatch(entry.name):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    entry.unlink()


def refuse_unwritable(path: str | os.PathLike) -> None:
    """Raises RunError when no file can be written at `path`: asked before long work whose result is to go there.

    Makes the folder it is to be in, as `atomic_file` does.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        _refuse_if_not_written(path, error)


def _to_disk(path: Path) -> None:
    """Waits until what was written to the file, or the names in the folder, would be there after a loss of power.

    An error of a file counts (a full disk may say so only now); a folder that cannot be synchronised, as on some network file
    systems and on Windows, does not.
    """
    try:
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not path.is_dir() and error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _refuse_if_not_written(path: Path, error: Exception) -> None:
    """RunError for what a full disk or a forbidden folder raises: OSError, and from safetensors an error class of its own."""
    said = str(error)
    if isinstance(error, OSError):
        reason = error.strerror or said
    elif type(error).__name__ == "SafetensorError" and "I/O error" in said:
        reason = said.partition("I/O error: ")[2].partition(" (os error")[0] or said
    else:
        return
    raise RunError(f"Cannot write {path}: {reason}; free some space or choose another folder.") from error


def _made(path: Path, variable: str) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"Cannot make the folder {path}: {error.strerror or error}; set {variable} to a folder that can be written."
        ) from error
    return path


def _asked_umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


# It can only be asked by setting it, for the whole process: asked once, on import, it cannot get lost between two threads.
_UMASK = _asked_umask()
