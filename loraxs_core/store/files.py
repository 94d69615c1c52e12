"""The files of a store, and how processes share them.

    store.json        what this folder is, and which file holds the adapters; replaced whole, by rename
    rows-000001.mdb   LMDB: index, rows, plans; rows-000001.mdb-lock beside it holds LMDB's table of readers
    write.lock        held by whoever writes

Readers take no lock: LMDB gives each a view of the last commit for as long as it looks. A put is one LMDB transaction, which is on the disk
before it is acknowledged, and which a killed process leaves undone as a whole. Compaction writes the next file beside the first and
then renames `store.json`; whoever looks again sees the new one, and whoever still looks at the old one keeps it until done.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lmdb
from filelock import FileLock, Timeout
from xxhash import xxh3_64_hexdigest

from loraxs_core.errors import StoreDamaged, StoreError
from loraxs_core.paths import atomic_file, user_path

MARKER, LOCK = "store.json", "write.lock"
FORMAT = 1
MAP_BYTES = 1 << 42  # of address space, not of memory or disk: how large a store can grow
READERS = 1024  # at a time, in all processes
WAIT_SECONDS = 60.0  # for another writer


@dataclass(frozen=True)
class Marker:
    """What store.json says. id: of the store, kept for life. file: that holds the adapters."""

    id: str
    file: str

    def written(self) -> str:
        said = {"file": self.file, "format": FORMAT, "id": self.id}
        return json.dumps(said | {"check": _check(said)}, sort_keys=True)


@dataclass
class Opened:
    """One LMDB file, open in this process. page: bytes of its pages. users: transactions under way."""

    env: lmdb.Environment
    page: int
    path: Path
    users: int = 0
    replaced: bool = False


@dataclass(frozen=True)
class View:
    """A transaction on a store. page: bytes of a page. What is under which key, `loraxs_core.store.records` says."""

    txn: lmdb.Transaction
    env: lmdb.Environment
    page: int


_open: dict[Path, Opened] = {}  # LMDB allows one opening of a file a process
_holders: Counter[Path] = Counter()  # folder -> how many `Files` of it are alive; with the last, its file is closed
_guard = threading.RLock()


class Files:
    """The files of the store in `folder`. Raises StoreError where there is no store, or one of another format."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = user_path(folder).absolute()
        self._seen: tuple[int, int] | None = None
        self._marker: Marker | None = None
        self.marker()
        with _guard:
            _holders[self.folder] += 1
        weakref.finalize(self, _release, self.folder)

    @classmethod
    def create(cls, folder: str | os.PathLike) -> Files:
        """A new, empty store. Raises StoreError where something else is in the folder, RunError where it cannot be written."""
        path = user_path(folder).absolute()
        if (path / MARKER).exists():
            raise StoreError(f"{path} holds a store already; choose another folder.")
        if path.exists() and (not path.is_dir() or not all(one.name.startswith(("rows-", LOCK)) for one in path.iterdir())):
            raise StoreError(f"{path} exists and is no store; choose the name of a new folder.")
        marker = Marker(uuid.uuid4().hex, file_name(1))
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / marker.file).unlink(missing_ok=True)  # of a creation that was killed
            with translated(path):
                _close(_opened(path / marker.file, create=True))
        except OSError as error:
            raise StoreError(f"Cannot make a store in {path}: {error.strerror or error}; choose another folder.") from error
        with atomic_file(path / MARKER) as temporary:
            temporary.write_text(marker.written(), encoding="utf-8")
        return cls(path)

    def marker(self) -> Marker:
        """What store.json says now."""
        path = self.folder / MARKER
        try:
            status = os.stat(path)
            now = status.st_ino, status.st_mtime_ns
            if self._marker is None or now != self._seen:
                self._marker, self._seen = _read(path), now
        except FileNotFoundError:
            raise StoreError(f"There is no store in {self.folder}; make one with loraxs store create.") from None
        except OSError as error:
            raise StoreError(f"Cannot read {path}: {error.strerror or error}.") from error
        return self._marker

    @contextlib.contextmanager
    def reading(self) -> Iterator[View]:
        """The last commit, for the time of the block."""
        with self._current() as opened, translated(self.folder), opened.env.begin(buffers=True) as txn:
            yield View(txn, opened.env, opened.page)

    @contextlib.contextmanager
    def writing(self) -> Iterator[View]:
        """A transaction that is on the disk when the block has ended, or undone as a whole when it raises."""
        with self.locked(), self.writing_alone() as view:
            yield view

    @contextlib.contextmanager
    def writing_alone(self) -> Iterator[View]:
        """As `writing`, for who holds the lock already."""
        with self._current() as opened, translated(self.folder):
            opened.env.reader_check()  # what a killed reader still held can be used again
            with opened.env.begin(write=True, buffers=True) as txn:
                yield View(txn, opened.env, opened.page)

    def copy_compact(self, path: Path) -> None:
        """The last commit without its free pages, at `path`; on the disk. Only under `locked`."""
        with self._current() as opened, translated(self.folder):
            opened.env.copy(str(path), compact=True)
        handle = os.open(path, os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes during the block. Raises StoreError when another writer does not end."""
        try:
            with FileLock(self.folder / LOCK, timeout=WAIT_SECONDS):
                yield
        except Timeout:
            raise StoreError(
                f"Another process writes to {self.folder} and did not end in {WAIT_SECONDS:g} s; try again."
            ) from None
        except OSError as error:
            if error.filename is None or not str(error.filename).endswith(LOCK):
                raise
            raise StoreError(f"Cannot write to the store {self.folder}: {error.strerror or error}.") from error

    def live_bytes(self) -> int:
        """Bytes of the file that hold something."""
        with self.reading() as view:
            return (view.env.info()["last_pgno"] + 1 - free_pages(view)) * view.page

    def switch(self, file: str) -> None:
        """From now on `file` holds the adapters; the others go. Only under `locked`."""
        marker = Marker(self.marker().id, file)
        with atomic_file(self.folder / MARKER) as temporary:
            temporary.write_text(marker.written(), encoding="utf-8")
        self.tidy()

    def tidy(self) -> None:
        """Removes files that a compaction, or one that was killed, has left. Only under `locked`."""
        current = self.marker().file
        for path in self.folder.glob("rows-*"):
            if not path.name.startswith(current):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _current(self) -> Iterator[Opened]:
        while True:
            path = self.folder / self.marker().file
            try:
                with _guard, translated(self.folder):
                    opened = _opened(path)
                    opened.users += 1
            except FileNotFoundError:
                if path.name == self.marker().file:
                    raise StoreDamaged(f"{path} is missing; restore the store from a backup.") from None
                continue
            if path.name == self.marker().file:
                break
            _left(opened)  # compacted meanwhile: where the file had just gone, LMDB has made an empty one of its name
        try:
            yield opened
        finally:
            _left(opened)


class OneFile(Files):
    """The store in `folder` as it would be if `file` held its adapters: for looking at a copy before it takes the place."""

    def __init__(self, folder: Path, file: str):
        self._file = file
        super().__init__(folder)

    def marker(self) -> Marker:
        return Marker(super().marker().id, self._file)

    def discard(self) -> None:
        """Removes the file."""
        with _guard:
            if (path := self.folder / self._file) in _open:
                _close(_open[path])
        for name in (self._file, f"{self._file}-lock"):
            (self.folder / name).unlink(missing_ok=True)


def free_pages(view: View) -> int:
    """Pages of the file that hold nothing now and that later puts fill."""
    held = view.env.stat()
    used = held["branch_pages"] + held["leaf_pages"] + held["overflow_pages"]
    return view.env.info()["last_pgno"] + 1 - 2 - used  # two are LMDB's own


def file_name(number: int) -> str:
    return f"rows-{number:06}.mdb"


def file_number(name: str) -> int:
    """The number of the file with this name."""
    return int(name.removeprefix("rows-").removesuffix(".mdb"))


@contextlib.contextmanager
def translated(folder: Path) -> Iterator[None]:
    """LMDB's errors as sentences."""
    try:
        yield
    except lmdb.MapFullError as error:
        raise StoreError(f"The store {folder} has no address space left to grow; make a second one.") from error
    except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError) as error:
        raise StoreDamaged(
            f"The file of the store {folder} is damaged ({str(error).rstrip('.')}); loraxs store verify says what is lost, and a "
            "backup brings it back."
        ) from error
    except lmdb.ReadersFullError as error:
        raise StoreError(f"More than {READERS} readers use the store {folder}; end some.") from error
    except lmdb.Error as error:
        raise StoreError(
            f"Cannot use the store {folder}: {str(error).rstrip('.')}; free some space or check the disk."
        ) from error


def _opened(path: Path, *, create: bool = False) -> Opened:
    with _guard:
        for other in [one for one in _open.values() if one.path.parent == path.parent and one.path != path]:
            other.replaced = True
            if not other.users:
                _close(other)
        if path in _open:
            return _open[path]
        if not create and not path.is_file():
            raise FileNotFoundError(path)
        readonly = not create and not os.access(path, os.W_OK)
        env = _environment(path, readonly, create)
        _open[path] = Opened(env, env.stat()["psize"], path)
        return _open[path]


def _environment(path: Path, readonly: bool, create: bool) -> lmdb.Environment:
    """LMDB on `path`, with as much address space as there is, up to `MAP_BYTES`."""
    size, least = MAP_BYTES, max(1 << 28, 2 * path.stat().st_size if path.exists() else 0)
    while True:
        try:
            return lmdb.open(
                str(path), subdir=False, map_size=size, max_readers=READERS, readonly=readonly, create=create,
                lock=not readonly or os.access(path.parent, os.W_OK), mode=0o644, lib_version=0,
            )  # fmt: skip
        except (lmdb.MemoryError, MemoryError):  # ulimit -v
            if size <= least:
                raise
            size = max(least, size // 4)
        except lmdb.Error:
            if not path.exists():  # a compaction has just removed it: who asks looks at store.json again
                raise FileNotFoundError(path) from None
            raise


def _left(opened: Opened) -> None:
    """One user less; the last one of a file that was replaced closes it."""
    with _guard:
        opened.users -= 1
        if opened.replaced and not opened.users:
            _close(opened)


def _close(opened: Opened) -> None:
    with _guard:
        _open.pop(opened.path, None)
        opened.env.close()


def _release(folder: Path) -> None:
    with _guard:
        _holders[folder] -= 1
        if _holders[folder] <= 0:
            del _holders[folder]
            for opened in [one for one in _open.values() if one.path.parent == folder and not one.users]:
                _close(opened)


def _forget() -> None:
    """In a forked child: LMDB's files must be opened anew."""
    global _guard
    _guard = threading.RLock()
    for opened in list(_open.values()):
        _close(opened)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _check(said: dict) -> str:
    return xxh3_64_hexdigest(json.dumps(said, sort_keys=True).encode())


def _read(path: Path) -> Marker:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        check = said.pop("check")
        if said["format"] != FORMAT:
            raise StoreError(f"{path.parent} is a store of format {said['format']}; this version reads {FORMAT}.")
        if check != _check(said):
            raise KeyError("check")
        return Marker(said["id"], said["file"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreDamaged(f"{path} is damaged; restore the store from a backup.") from None
