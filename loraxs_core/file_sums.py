"""The checksum of a file's content, the same one wherever files are told apart: samples in the cache, what a comparison began with."""

from __future__ import annotations

import os
from pathlib import Path

from xxhash import xxh3_128

from loraxs_core.safetensors_file import file_stamp

CHUNK = 8 << 20
_known: dict[tuple[Path, tuple[int, int, int, int]], str] = {}  # by what the file system says of the file


def file_sum(path: Path) -> str:
    """XXH3-128 of all bytes of the file at `path`, in hexadecimal. A file that has not changed is read once a process.

    Raises OSError.
    """
    with open(path, "rb") as file:
        stamp = (path, file_stamp(os.fstat(file.fileno())))
        if stamp not in _known:
            digest = xxh3_128()
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            _known[stamp] = digest.hexdigest()
    return _known[stamp]
