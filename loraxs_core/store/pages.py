"""One adapter's row in LMDB without waste.

LMDB keeps a long value in whole pages of its own, with 16 bytes of header in the first: a row of 114,688 bytes, 28 pages to the byte,
would take 29, and one of MiniLM's 18,432 bytes 11 % more than it has. So a row is cut: what fills whole pages is one value, and the rest
lies in pieces of a few hundred bytes, which LMDB packs into pages side by side.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraxs_core.errors import StoreDamaged
from loraxs_core.store.files import View
from loraxs_core.store.records import ROWS, number_bytes

HEADER = 16  # of the first of LMDB's overflow pages
PIECE = 500  # bytes; eight fit into a page with their keys


def in_pages(size: int, page: int) -> int:
    """How many of a row's `size` bytes fill whole pages of `page` bytes."""
    return max(0, (size + HEADER) // page * page - HEADER)


def parts_of(size: int, page: int) -> int:
    """In how many parts a row of `size` bytes is kept."""
    return sum(1 for _ in _parts(0, size, page))


def write(view: View, version: int, row: bytes | bytearray | memoryview) -> None:
    """Puts the row of `version`: behind the others, whose pages stay full, where its number is the highest."""
    numbers = memoryview(row).cast("B")
    for key, start, stop in _parts(version, len(numbers), view.page):
        part = numbers[start:stop]
        if not view.txn.put(key, part, append=True):  # not the highest: a version that comes back from a backup
            view.txn.put(key, part)


def read(view: View, version: int, size: int) -> bytearray:
    """The row of `version`. Raises StoreDamaged when a part of it is not there."""
    found = bytearray(size)
    for key, start, stop in _parts(version, size, view.page):
        part = view.txn.get(key)
        if part is None or len(part) != stop - start:
            raise StoreDamaged("a part of its numbers is missing")
        found[start:stop] = part
    return found


def remove(view: View, version: int, size: int) -> None:
    for key, _, _ in _parts(version, size, view.page):
        view.txn.delete(key)


def _parts(version: int, size: int, page: int) -> Iterator[tuple[bytes, int, int]]:
    """(key, first byte, end) of the parts of a row, in the order of their keys."""
    head, cut = ROWS + number_bytes(version), in_pages(size, page)
    if cut:
        yield head + b"\0", 0, cut
    for index, at in enumerate(range(cut, size, PIECE), start=1):
        yield head + bytes([index]), at, min(size, at + PIECE)
