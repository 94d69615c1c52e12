"""How much room the cache takes: listed, cleared by kind, age or model, and kept below a limit.

When it grows past the limit, the entries that were used longest ago go first (the modification time of an entry is when it was
last used). Samples, which were downloaded, go only when they are cleared by name. Leftovers of processes that were killed while
they wrote are swept on the way.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loraxs_core.cache_entry import SUFFIX, Damaged, read_label
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.paths import atomic_file, cache_dir

SAMPLES = "samples"
OLDER = "older versions"  # what this version does not read any more
LEFTOVERS = "leftovers"  # half-written files of processes that were killed
KINDS = {
    "bases": "frozen pairs (A, B) of weights",
    "spectra": "singular values of layers",
    "memory": "estimates of GPU memory",
    "tokens": "texts of comparisons as token ids",
    "files": "checksums of downloaded models and data",
    SAMPLES: "downloaded models and data",
    OLDER: "files that this version does not read",
    LEFTOVERS: "what killed processes left half-written",
}
ENTRIES = ("bases", "spectra", "memory", "tokens", "files")  # folders of `loraxs_core.cache.Kept`
_OLD_SUFFIXES = (".safetensors", ".json")  # what entries of these kinds were before they had checksums
LIMIT_VARIABLE = "LORAXS_CACHE_LIMIT"
DEFAULT_LIMIT = 20 * 10**9  # bytes; the bases of a few dozen adapters of a 7B model
LEFT_AFTER = 3600.0  # seconds after which a half-written file has no writer any more
_LIMIT_FILE = "limit.json"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Item:
    """One thing in the cache. bytes: on disk. used: when it was last used, seconds since the epoch."""

    path: Path
    kind: str
    model: str
    what: str
    bytes: int
    used: float


def items() -> list[Item]:
    """Everything in the cache, the longest unused first. Raises RunError where there is no cache folder."""
    return sorted(_walk(cache_dir(), labels=True), key=lambda item: item.used)


@dataclass(frozen=True)
class Group:
    """The items of one kind and model together. used: when the first of them was used last."""

    kind: str
    model: str
    entries: int
    bytes: int
    used: float


def groups(found: Iterable[Item]) -> list[Group]:
    """The items by kind and model, the largest first within each kind."""
    together: dict[tuple[str, str], list[Item]] = {}
    for item in found:
        together.setdefault((item.kind, item.model), []).append(item)
    made = [
        Group(kind, model, len(of), sum(item.bytes for item in of), max(item.used for item in of))
        for (kind, model), of in together.items()
    ]
    order = list(KINDS)
    return sorted(made, key=lambda group: (order.index(group.kind), -group.bytes))


def chosen(found: Iterable[Item], kinds: Iterable[str], *, unused_for: float = 0.0, model: str | None = None) -> list[Item]:
    """Those of `found` that are of these kinds and this model and were not used for so many seconds.

    Raises SettingsError for a kind that there is not.
    """
    wanted, now = set(kinds), time.time()
    if strange := sorted(wanted - KINDS.keys()):
        raise SettingsError(f"There is nothing called {strange[0]!r} in the cache; there are {', '.join(KINDS)}.")
    return [item for item in found if item.kind in wanted and now - item.used >= unused_for and model in (None, item.model)]


def clear(kinds: Iterable[str] = (), *, unused_for: float = 0.0, model: str | None = None) -> list[Item]:
    """Removes what `chosen` gives (of all kinds but samples when none is named), and returns it.

    Raises SettingsError for a kind that there is not, RunError when something cannot be removed.
    """
    now = time.time()
    gone = [
        item
        for item in chosen(items(), tuple(kinds) or KINDS.keys() - {SAMPLES}, unused_for=unused_for, model=model)
        if item.kind != LEFTOVERS or now - item.used >= LEFT_AFTER  # a younger one may still be written
    ]
    for item in gone:
        try:
            if item.path.is_dir() and not item.path.is_symlink():
                shutil.rmtree(item.path)
            else:
                item.path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"Cannot remove {item.path}: {error.strerror or error}.") from error
    return gone


def limit() -> int | None:
    """The most bytes that entries may take, samples not counted; None for no limit.

    The environment variable LORAXS_CACHE_LIMIT wins over what `set_limit` wrote. Raises SettingsError for one that is no size.
    """
    said = os.environ.get(LIMIT_VARIABLE)
    if said is not None:
        return size(said)
    try:
        written = json.loads((cache_dir() / _LIMIT_FILE).read_text(encoding="utf-8"))["bytes"]
        return None if written is None else int(written)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, RunError, OverflowError):
        return DEFAULT_LIMIT


def set_limit(most: int | None) -> list[Item]:
    """Makes `most` bytes the limit from now on, and returns what had to go. Raises RunError when it cannot be written."""
    with atomic_file(cache_dir() / _LIMIT_FILE) as temporary:
        temporary.write_text(json.dumps({"bytes": most}), encoding="utf-8")
    return evict(most)


def size(text: str) -> int | None:
    """Bytes from ``20GB``, ``500 MB`` or a plain number; None for ``none``. Raises SettingsError for anything else.

    >>> size("1.5 GB"), size("none")
    (1500000000, None)
    """
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]?B?)", text.strip().upper())
    unit = _UNITS.get(match[2] if match[2].endswith("B") or not match[2] else f"{match[2]}B") if match else None
    if unit is None:
        raise SettingsError(f"{text!r} is no size; write 20GB, 500MB, a number of bytes, or none.")
    return int(float(match[1]) * unit)


def evict(most: int | None) -> list[Item]:
    """Removes entries, the longest unused first, until they take `most` bytes at most; and leftovers. Returns what went."""
    found = sorted(_walk(cache_dir(), labels=False), key=lambda item: item.used)
    now = time.time()
    gone = [item for item in found if item.kind == LEFTOVERS and now - item.used >= LEFT_AFTER]
    entries = [item for item in found if item.kind not in (LEFTOVERS, SAMPLES)]
    total = sum(item.bytes for item in entries)
    for item in entries:
        if most is None or total <= most:
            break
        gone.append(item)
        total -= item.bytes
    for item in gone:
        with contextlib.suppress(OSError):  # another process was quicker, or the folder is read-only
            item.path.unlink()
    return gone


_since: int | None = None  # bytes written by this process since it looked at the limit; None: it never did


def tend(written: int) -> None:
    """Told of bytes that were just kept: looks at the limit the first time, and whenever a twentieth of it was written since."""
    global _since
    try:
        most = limit()
        _since = None if _since is None else _since + written
        if _since is None or (most is not None and _since > most // 20):
            _since = 0
            evict(most)
    except (RunError, SettingsError):  # what is wrong with a limit is for `loraxs cache` to say
        return


def _walk(root: Path, *, labels: bool) -> Iterator[Item]:
    """What this program put below `root`, and nothing else that may lie there. labels: whether to read which model entries are of."""
    yield from _samples(root / SAMPLES)
    for kind in ENTRIES:
        for folder, _, files in os.walk(root / kind):
            for name in files:
                item = _item(Path(folder) / name, kind, labels)
                if item is not None:
                    yield item


def _item(path: Path, kind: str, labels: bool) -> Item | None:
    """The file at `path`, if it is one of ours."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    model = what = ""
    if path.name.startswith("."):
        kind, what = LEFTOVERS, path.name
    elif path.suffix in _OLD_SUFFIXES:
        kind, what = OLDER, path.name
    elif path.suffix != SUFFIX:
        return None
    elif labels:
        try:
            label = read_label(path)
            model, what = str(label.model), str(label.what)
        except (Damaged, OSError):
            what = "damaged"
    return Item(path, kind, model, what, status.st_size, status.st_mtime)


def _samples(folder: Path) -> Iterator[Item]:
    for path in _folder(folder):
        try:
            status = path.lstat()
        except OSError:
            continue
        if path.name.startswith("."):
            if not path.name.endswith(".lock"):
                yield Item(path, LEFTOVERS, "", path.name, _bytes(path), status.st_mtime)
        else:
            yield Item(path, SAMPLES, path.name, "folder", _bytes(path), status.st_mtime)


def _bytes(path: Path) -> int:
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _folder(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []
