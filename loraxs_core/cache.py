"""What was computed once and is kept in the user's cache folder: bases, spectra, estimates, and the sums of downloaded samples.

An entry is found by what it was computed from (`Kept.key`: the caller's content, this program's version and its code), and it is
believed only if its checksum holds. Anything else, a damaged file, a folder that cannot be read or written, a full disk, costs
the time to compute it again and one remark (`CacheRemark`), never an error and never a wrong number. Files are renamed into
place whole, so that processes side by side and a kill in between are safe without locks.

An entry's file, little-endian: magic ``LXSKEPT1``, XXH3-128 checksum of all that follows, length of the label, length of the
payload, the label (JSON: kind, key, model, what, meta), the payload (safetensors, or nothing). XXH3 reads at memory speed; it
tells damage, not forgery: who can write the folder can also write a fitting checksum.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from loraxs_core.errors import RunError
from loraxs_core.paths import APP, atomic_file, cache_dir

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

SUFFIX = ".kept"
_START = struct.Struct("<8s16s")
_SIZES = struct.Struct("<IQ")
_MAGIC = b"LXSKEPT1"
_MOST_LABEL = 1 << 24  # bytes; no label is near it, a damaged length may be
_SOURCES = (".py", ".json")


class CacheRemark(UserWarning):
    """Something about the cache that the person may want to know and need not act on."""


class Damaged(Exception):
    """A file that is no entry, or not the one it was."""


@dataclass(frozen=True)
class Label:
    """What an entry says it is. kind: of artefact. model, what: for the person who lists the cache. meta: its small values."""

    kind: str
    key: str
    model: str
    what: str
    meta: dict


class Kept:
    """One kind of artefact in the cache.

    kind: the folder it is in. packages: the top-level packages whose code decides what is computed; all of their sources are part
    of every key, so that no list of files is kept by hand.
    """

    def __init__(self, kind: str, packages: tuple[str, ...]):
        self.kind, self.packages = kind, packages

    def key(self, *content: str) -> str:
        """The name of what was computed from `content` by this program, as 32 hexadecimal digits."""
        from xxhash import xxh3_128

        return xxh3_128(json.dumps([self.kind, software(*self.packages), *content]).encode()).hexdigest()

    def path(self, key: str) -> Path:
        """Where the entry is, or would be. Raises RunError where there can be no cache folder."""
        return cache_dir() / self.kind / key[:2] / f"{key}{SUFFIX}"

    def load(self, key: str, decode: Callable[[dict, dict[str, np.ndarray]], T]) -> T | None:
        """What `decode` makes of the meta and the arrays that were saved; None when there is no entry that can be believed.

        One that is damaged, or that `decode` takes no sense from, is told of in a remark.
        """
        try:
            path = self.path(key)
            label, payload = read(path)
            if (label.kind, label.key) != (self.kind, key):
                raise Damaged("it belongs elsewhere")
            found = _decoded(label, payload, decode)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except RunError as error:
            remark("folder", f"There is no cache: {str(error).rstrip('.')}.")
            return None
        except OSError as error:
            remark("read", f"{path} cannot be read ({error.strerror or error}); what it holds is computed again.")
            return None
        except Damaged as error:
            remark(
                f"damaged {self.kind}", f"{path} in the cache is damaged ({error}); it is computed again, as any other like it."
            )
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # when it was last used, for `loraxs_core.cache_room`
        return found

    def save(
        self,
        key: str,
        *,
        meta: dict | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
        model: str = "",
        what: str = "",
    ) -> None:
        """Keeps `meta` (plain JSON) and `arrays` under `key`. Where nothing can be written, a remark says so once."""
        from loraxs_core.cache_room import tend

        label = json.dumps({"kind": self.kind, "key": key, "model": model, "what": what, "meta": meta or {}}).encode()
        payload = _packed(arrays) if arrays else b""
        body = _SIZES.pack(len(label), len(payload)) + label + payload
        try:
            with atomic_file(self.path(key)) as temporary:
                temporary.write_bytes(_START.pack(_MAGIC, _checksum(body)) + body)
            tend(len(body))
        except RunError as error:
            said = str(error).partition("; ")[0].rstrip(".")
            remark("write", f"{said}; nothing is kept in the cache, and the same takes as long next time.")


def read(path: Path) -> tuple[Label, memoryview]:
    """The label and the payload of the entry at `path`, after its checksum was found right.

    Raises Damaged, or OSError. Never waits: what is no plain file (a pipe, a device) is Damaged.
    """
    with _opened(path) as (file, size):
        checksum, length, payload = _start(file)
        if _START.size + _SIZES.size + length + payload != size:
            raise Damaged("it has another length than it says")
        file.seek(_START.size)
        body = memoryview(file.read(size - _START.size))
    if _checksum(body) != checksum:
        raise Damaged("its checksum does not fit")
    return _label(bytes(body[_SIZES.size :][:length])), body[_SIZES.size + length :]


def read_label(path: Path) -> Label:
    """The label alone, unchecked: for listing. Raises Damaged or OSError."""
    with _opened(path) as (file, _):
        _, length, _ = _start(file)
        return _label(file.read(min(length, _MOST_LABEL)))


@functools.cache
def software(*packages: str) -> str:
    """This program's version and a digest of every source file of `packages`."""
    from xxhash import xxh3_128

    try:
        version = importlib.metadata.version(APP)
    except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
        version = "0"
    digest = xxh3_128()
    root = Path(__file__).resolve().parent.parent
    for package in packages:
        for source in sorted(path for path in (root / package).rglob("*") if path.suffix in _SOURCES):
            digest.update(repr((source.relative_to(root).as_posix(), source.read_bytes())).encode())
    return f"{version} {digest.hexdigest()}"


_said: dict[str, str] = {}


def remark(about: str, text: str) -> None:
    """Tells the person `text`, unless something `about` the same was told by this process before."""
    if _said.setdefault(about, text) is text:
        warnings.warn(text, CacheRemark, stacklevel=3)


def remarks() -> list[str]:
    """What this process said about its cache so far."""
    return list(_said.values())


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """(the file, its length); only plain files, and without waiting for the writer of a pipe."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Damaged("it is no plain file")
        with open(handle, "rb", closefd=False) as file:
            yield file, status.st_size
    finally:
        os.close(handle)


def _start(file: BinaryIO) -> tuple[bytes, int, int]:
    """(checksum, bytes of the label, bytes of the payload) that an entry says it has."""
    raw = file.read(_START.size + _SIZES.size)
    if not raw.startswith(_MAGIC):
        raise Damaged("it is no entry of this cache")
    if len(raw) < _START.size + _SIZES.size:
        raise Damaged("it is cut off")
    return (_START.unpack_from(raw)[1], *_SIZES.unpack_from(raw, _START.size))


def _label(raw: bytes) -> Label:
    try:
        return Label(**json.loads(raw))
    except (ValueError, TypeError, RecursionError):
        raise Damaged("its label cannot be read") from None


def _checksum(body) -> bytes:
    from xxhash import xxh3_128

    return xxh3_128(body).digest()


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    import numpy as np
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _decoded(label: Label, payload: memoryview, decode: Callable[[dict, dict[str, np.ndarray]], T]) -> T:
    from safetensors.numpy import load

    try:
        return decode(label.meta, load(bytes(payload)) if len(payload) else {})
    except Damaged:
        raise
    except Exception as error:  # what was saved is not what is wanted now, in whatever way
        raise Damaged(f"{type(error).__name__} while it was read") from error
