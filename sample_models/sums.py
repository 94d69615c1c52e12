"""Checksums of what was downloaded and unpacked, so that a file that was damaged since is fetched again, not believed.

They are kept in the cache like all else that is (`loraxs_core.cache`), under the folder's own name, which says what it was made of.
A wheel without them, from an older version of this program, is held against its own RECORD.
"""

from __future__ import annotations

import base64
import csv
import hashlib
from pathlib import Path

from loraxs_core.cache import Kept, remark
from loraxs_core.file_sums import file_sum
from loraxs_core.safetensors_file import file_stamp

_seen: dict[Path, tuple] = {}  # folders found whole by this process, with the stamps of their files then


def whole(folder: Path, packages: tuple[str, ...] = ()) -> bool | None:
    """Whether every file of `folder` is what `seal` saw; None when it never did, and False, with a remark, when one is not.

    packages: whose code made the folder (a converted model); none for what was only unpacked. Reads the files once a process.
    """
    if not folder.is_dir():
        return False
    stamps = _stamps(folder)
    if _seen.get(folder) == stamps:
        return True
    kept = Kept("files", packages)
    sums = kept.load(kept.key(folder.name), lambda meta, arrays: dict(meta["sums"]))
    if sums is None:
        return None
    for name, checksum in sums.items():
        if _sum(folder / name) != checksum:
            remark(f"damaged {folder}", f"{folder / name} is damaged, or is not what was downloaded; it is fetched again.")
            return False
    _seen[folder] = stamps
    return True


def seal(folder: Path, packages: tuple[str, ...] = ()) -> None:
    """Notes what the files of `folder` are."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = Kept("files", packages)
    sums = {path.relative_to(folder).as_posix(): _sum(path) for path in files}
    kept.save(kept.key(folder.name), meta={"sums": sums}, model=folder.name, what=f"{len(files)} files")
    _seen[folder] = _stamps(folder)


def fits_record(folder: Path) -> bool:
    """Whether the files of an unpacked wheel have the SHA-256 that its RECORD gives them; True where it gives none."""
    for record in folder.glob("*.dist-info/RECORD"):
        try:
            rows = list(csv.reader(record.read_text(encoding="utf-8").splitlines()))
        except (OSError, ValueError, csv.Error):
            return False
        for name, given, *_ in (row for row in rows if len(row) > 1 and row[1].startswith("sha256=")):
            try:
                with open(folder / name, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").digest()
            except OSError:
                return False
            if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != given.removeprefix("sha256="):
                return False
    return True


def _sum(path: Path) -> str | None:
    try:
        return file_sum(path)
    except OSError:
        return None


def _stamps(folder: Path) -> tuple:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((str(path), file_stamp(path.stat())) for path in files)
