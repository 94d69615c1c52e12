"""What was computed once and is kept in the user's cache folder: bases, spectra, estimates, and the sums of downloaded samples.

An entry is found by what it was computed from (`Kept.key`: the caller's content, this program's version and its code), and it is
believed only if its checksum holds. Anything else, a damaged file, a folder that cannot be read or written, a full disk, costs
the time to compute it again and one remark (`CacheRemark`), never an error and never a wrong number. Files are renamed into
place whole, so that processes side by side and a kill in between are safe without locks.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from xxhash import xxh3_128

from loraxs_core.cache_entry import SUFFIX, Damaged, Label, pack, read
from loraxs_core.cache_room import tend
from loraxs_core.errors import RunError
from loraxs_core.paths import APP, atomic_file, cache_dir

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

_SOURCES = (".py", ".json")


class CacheRemark(UserWarning):
    """Something about the cache that the person may want to know and need not act on."""


class Kept:
    """One kind of artefact in the cache.

    kind: the folder it is in. packages: the top-level packages whose code decides what is computed; all of their sources are part
    of every key, so that no list of files is kept by hand.
    """

    def __init__(self, kind: str, packages: tuple[str, ...]):
        self.kind, self.packages = kind, packages

    def key(self, *content: str) -> str:
        """The name of what was computed from `content` by this program, as 32 hexadecimal digits."""
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
        label = json.dumps({"kind": self.kind, "key": key, "model": model, "what": what, "meta": meta or {}}).encode()
        payload = _packed(arrays) if arrays else b""
        entry = pack(label, payload)
        try:
            with atomic_file(self.path(key)) as temporary:
                temporary.write_bytes(entry)
            tend(len(entry))
        except RunError as error:
            said = str(error).partition("; ")[0].rstrip(".")
            remark("write", f"{said}; nothing is kept in the cache, and the same takes as long next time.")


@functools.cache
def software(*packages: str) -> str:
    """This program's version and a digest of every source file of `packages`."""
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
