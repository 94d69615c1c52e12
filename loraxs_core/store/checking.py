"""Whether everything in a store is what was put there, and if not, whose it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lmdb.verify import VerifyError
from lmdb.verify import verify as walk

from loraxs_core.errors import StoreDamaged
from loraxs_core.progress import Progress, ProgressCallback
from loraxs_core.store import pages, records
from loraxs_core.store.files import Files, View
from loraxs_core.store.store import AdapterStore, read_plan, read_row, remove_row, shared_bytes, under

A_TIME = 256  # rows in one look, so that a long check holds no pages of the past


@dataclass(frozen=True)
class Damage:
    """Something that is not what was put. label: ``name@version``, or what else it is. what: a sentence."""

    label: str
    what: str


@dataclass(frozen=True)
class Report:
    """What a check found. versions, bytes: that were read. damaged: adapters by name. file: what is wrong with the file itself."""

    versions: int
    bytes: int
    damaged: tuple[Damage, ...]
    file: tuple[str, ...]

    @property
    def sound(self) -> bool:
        return not self.damaged and not self.file


def verify(store: AdapterStore, *, progress: ProgressCallback | None = None) -> Report:
    """Reads everything: the file's own structure (by LMDB's verifier, while nobody writes), every index entry, row, plan and shared part.

    Rows that no index entry names, and entries without a row, are damage too. Does not raise for damage.
    """
    with store.files.locked():
        wrong = structure(store.files)
    return _contents(store.files, wrong, progress or (lambda _: None))


def verify_locked(files: Files) -> Report:
    """`verify` for who holds the store's lock."""
    return _contents(files, structure(files), lambda _: None)


def structure(files: Files) -> tuple[str, ...]:
    """What is wrong with the pages of the file, whatever they hold. Only under the store's lock."""
    try:
        found = walk(str(files.folder / files.marker().file), subdir=False)
    except VerifyError as error:
        found = [str(error)]
    return tuple(" ".join(one.split()) for one in found)


def _contents(files: Files, wrong: tuple[str, ...], report: ProgressCallback) -> Report:
    check = _Check(files)
    try:
        check.everything(report)
    except StoreDamaged as error:
        wrong = (*wrong, str(error))
    return Report(check.versions, check.bytes, tuple(check.damaged), wrong)


class _Check:
    """What has been read of a store so far, and what was found."""

    def __init__(self, files: Files):
        self.files = files
        self.versions = self.bytes = self.parts = 0
        self.damaged: list[Damage] = []
        self._plans: dict[int, int] = {}  # number -> bytes of a row

    def everything(self, report: ProgressCallback) -> None:
        with self.files.reading() as view:
            before, parts = _count(view, records.INDEX), _count(view, records.ROWS)
            last = view.txn.id()
            self._common(view)
        begun = Progress(0, max(1, before))
        start: bytes | None = b""
        while start is not None:
            with self.files.reading() as view:
                entries, start = _some(view, start)
                for key, record in entries:
                    self.one(view, key, record)
            report(Progress(min(self.versions, begun.total), begun.total, "", begun.started))
        with self.files.reading() as view:
            same = view.txn.id() == last
        # Where nobody put or deleted meanwhile, every row is one that an entry named.
        if same and not self.damaged and self.parts != parts:
            self.damaged.append(Damage("rows", "The file holds rows that no index entry names: the entries are lost."))

    def one(self, view: View, key: bytes, record: bytes) -> bool:
        """Whether one entry of the index is sound, with its row."""
        try:
            found = records.unpack(key, record)
            row = read_row(view, found)
            if self._row_bytes(view, found.plan) != len(row):
                raise StoreDamaged(f"{found.label} is not as long as its plan says.")
        except StoreDamaged as error:
            self.damaged.append(Damage(records.shown(key), str(error)))
            return False
        self.versions, self.bytes = self.versions + 1, self.bytes + len(row)
        self.parts += pages.parts_of(len(row), view.page)
        return True

    def _row_bytes(self, view: View, plan: int) -> int:
        if plan not in self._plans:
            self._plans[plan] = read_plan(view, plan).row_bytes
        return self._plans[plan]

    def _common(self, view: View) -> None:
        """Plans and what they share."""
        for key, _ in under(view, records.PLANS):
            self._try("plan", partial(read_plan, view, int.from_bytes(key[1:], "big")))
        for key, _ in under(view, records.SHARED):
            self._try("shared", partial(shared_bytes, view, key[1:].hex()))

    def _try(self, label: str, look: Callable[[], object]) -> None:
        try:
            look()
        except StoreDamaged as error:
            self.damaged.append(Damage(label, str(error)))


def drop_damaged(store: AdapterStore) -> list[str]:
    """Deletes every adapter whose entry or row is damaged; what is sound stays. Returns the labels of what went."""
    check = _Check(store.files)
    start: bytes | None = b""
    while start is not None:
        with store.files.writing() as view:
            entries, start = _some(view, start)
            for key, record in entries:
                if not check.one(view, key, record):
                    try:
                        remove_row(view, records.unpack(key, record))
                    except StoreDamaged:  # then its version, and with it its row, is not known for certain
                        view.txn.delete(key)
    return [one.label for one in check.damaged]


def _some(view: View, start: bytes) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    """(up to `A_TIME` index entries from the key `start` on, the key to go on from, None after the last)."""
    entries: list[tuple[bytes, bytes]] = []
    for key, record in under(view, records.INDEX, start):
        if len(entries) == A_TIME:
            return entries, key
        entries.append((key, bytes(record)))
    return entries, None


def _count(view: View, prefix: bytes) -> int:
    return sum(1 for _ in under(view, prefix))
