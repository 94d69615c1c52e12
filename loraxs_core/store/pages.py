"""One adapter's row in LMDB without waste.

LMDB keeps a long value in whole pages of its own, with 16 bytes of header in the first: a row of 114,688 bytes, 28 pages to the byte,
would take 29, and one of MiniLM's 18,432 bytes 11 % more than it has. So a row is cut: what fills whole pages is one value, and the rest
lies in pieces of a few hundred bytes, which LMDB packs into pages side by side.
"""

from __future__ import annotations

from collections.abc import Iterator

import lmdb

from loraxs_core.errors import StoreDamaged
from loraxs_core.store.records import number_key

HEADER = 16  # of the first of LMDB's overflow pages
PIECE = 500  # bytes; eight fit into a page with their keys


def in_pages(size: int, page: int) -> int:
    """How many of a row's `size` bytes fill whole pages of `page` bytes."""
    return max(0, (size + HEADER) // page * page - HEADER)


def pieces_of(size: int, page: int) -> int:
    """How many pieces the rest of such a row is."""
    return -(-(size - in_pages(size, page)) // PIECE)


def write(
    txn: lmdb.Transaction,
    rows: lmdb._Database,
    pieces: lmdb._Database,
    version: int,
    row: bytes | bytearray | memoryview,
    page: int,
) -> None:
    """Puts the row of `version`, a number higher than any that is there (then pages are filled one after the other) or not."""
    view = memoryview(row).cast("B")
    cut = in_pages(len(view), page)
    if cut:
        _put(txn, number_key(version), view[:cut], rows)
    for key, start, stop in _pieces(version, cut, len(view)):
        _put(txn, key, view[start:stop], pieces)


def read(txn: lmdb.Transaction, rows: lmdb._Database, pieces: lmdb._Database, version: int, size: int, page: int) -> bytearray:
    """The row of `version`. txn: opened with buffers. Raises StoreDamaged when a part of it is not there."""
    found = bytearray(size)
    cut = in_pages(size, page)
    if cut:
        main = txn.get(number_key(version), db=rows)
        if main is None or len(main) != cut:
            raise StoreDamaged("a part of its numbers is missing")
        found[:cut] = main
    for key, start, stop in _pieces(version, cut, size):
        piece = txn.get(key, db=pieces)
        if piece is None or len(piece) != stop - start:
            raise StoreDamaged("a part of its numbers is missing")
        found[start:stop] = piece
    return found


def remove(txn: lmdb.Transaction, rows: lmdb._Database, pieces: lmdb._Database, version: int, size: int, page: int) -> None:
    cut = in_pages(size, page)
    if cut:
        txn.delete(number_key(version), db=rows)
    for key, _, _ in _pieces(version, cut, size):
        txn.delete(key, db=pieces)


def _pieces(version: int, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(key, first byte, end) of the pieces of bytes `start` to `stop` of a row."""
    head = number_key(version)
    for index, at in enumerate(range(start, stop, PIECE)):
        yield head + bytes([index]), at, min(stop, at + PIECE)


def _put(txn: lmdb.Transaction, key: bytes, value: memoryview, db: lmdb._Database) -> None:
    if not txn.put(key, value, append=True, db=db):  # not the highest: a version that comes back from a backup
        txn.put(key, value, db=db)
