"""A store for a fleet: every version of every adapter of one or many bases in one folder.

>>> import tempfile
>>> store = AdapterStore.create(tempfile.mkdtemp())
>>> store.names()
[]
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.errors import StoreDamaged, StoreError
from loraxs_core.store import pages, plans, records
from loraxs_core.store.files import Files, View, free_pages
from loraxs_core.store.plans import Plan
from loraxs_core.store.records import Version, check_name
from loraxs_core.store.stored import Space, StoredAdapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from loraxs_core.store.serving import Served

NEIGHBOURS = 128
BATCH_BYTES = 64 << 20  # of rows in one commit, where many are put


class AdapterStore:
    """The store in `folder`. Safe to use from many processes and threads: any number read while one writes.

    Raises StoreError where there is no store; `create` makes one.
    """

    def __init__(self, folder: str | os.PathLike):
        self.files = Files(folder)
        self._plans: dict[int, Plan] = {}  # a number is never given again

    @classmethod
    def create(cls, folder: str | os.PathLike) -> AdapterStore:
        """A new store in `folder`, which must be new or empty."""
        return cls(Files.create(folder).folder)

    @property
    def folder(self) -> Path:
        return self.files.folder

    @property
    def id(self) -> str:
        """Of this store, for life; a restored one has another."""
        return self.files.marker().id

    def put(self, name: str, source: str | os.PathLike | PeftModel, *, adapter: str | None = None) -> Version:
        """Keeps the adapter in the folder `source`, or in a PEFT model, as the newest version of `name`; on the disk when it returns.

        adapter: which adapter of the model; the active one when left out. What is there already as the newest version is not put again.
        Raises AdapterError for a source that is no sound LoRA-XS adapter, StoreError for a name that is none.
        """
        check_name(name)
        if isinstance(source, str | os.PathLike):
            return self.put_many([(name, source)])[0]
        with tempfile.TemporaryDirectory() as temporary:
            chosen = adapter or source.active_adapter
            source.save_pretrained(temporary, selected_adapters=[chosen])
            inner = Path(temporary) / chosen
            return self.put_many([(name, inner if inner.is_dir() else Path(temporary))])[0]

    def put_many(self, sources: Iterable[tuple[str, str | os.PathLike]]) -> list[Version]:
        """`put` for many folders; commits every 64 MiB, and what is committed stays when a later one raises."""
        from loraxs_core.store.taking import taken

        return self.put_rows((name, *taken(source)) for name, source in sources)

    def put_rows(self, rows: Iterable[tuple[str, Plan, dict[str, bytes], bytes]]) -> list[Version]:
        """`put` for adapters that are no folders: (name, plan, what it shares by checksum, row), as `plans.planned` and `Plan.row` give them."""
        done: list[Version] = []
        waiting, size = [], 0
        for name, plan, shared, row in rows:
            if len(row) != plan.row_bytes:
                raise StoreError(f"The row of {name!r} has {len(row):,} bytes and its plan says {plan.row_bytes:,}.")
            waiting.append((check_name(name), plan, shared, row))
            size += len(row)
            if size >= BATCH_BYTES:
                done += self._commit(waiting)
                waiting, size = [], 0
        return done + (self._commit(waiting) if waiting else [])

    def _commit(self, rows: list[tuple[str, Plan, dict[str, bytes], bytes]]) -> list[Version]:
        found = []
        with self.files.writing() as view:
            number = counter(view, "version")
            for name, plan, shared, row in rows:
                place = place_plan(view, plan, shared)
                digest = records.checksum(row)
                last = next(_versions(view, name), None)
                if last is not None and (last.plan, last.checksum) == (place, digest):
                    found.append(last)
                    continue
                number += 1
                version = Version(name, number, place, len(row), time.time_ns() // 1000, digest)
                place_row(view, version, row)
                found.append(version)
            if number != counter(view, "version"):
                set_counter(view, "version", number)
        return found

    def get(self, name: str, version: int | None = None) -> StoredAdapter:
        """The newest version of `name`, or that one. Raises StoreError when there is none, StoreDamaged when it is not what was put."""
        check_name(name)
        with self.files.reading() as view:
            found = _find(view, name, version, self.folder)
            row = read_row(view, found)
            plan = self.plan_of(view, found)
            shared = {digest: shared_bytes(view, digest) for *_, digest in plan.shared}
        return StoredAdapter(found, plan, row, shared)

    def newest(self, name: str) -> Version:
        """The newest version of `name`, its row not looked at. Raises StoreError when there is none."""
        with self.files.reading() as view:
            return _find(view, check_name(name), None, self.folder)

    def versions(self, name: str) -> list[Version]:
        """All versions of `name`, the newest first. Raises StoreError when there are none."""
        check_name(name)
        with self.files.reading() as view:
            _find(view, name, None, self.folder)
            return list(_versions(view, name))

    def names(self, prefix: str = "") -> list[str]:
        """The names that begin with `prefix`, in order."""
        return list(dict.fromkeys(one.name for one in self.entries(prefix)))

    def entries(self, prefix: str = "") -> Iterator[Version]:
        """All versions of all adapters whose names begin with `prefix`, by name and then the newest first.

        Looks at a thousand at a time, so that a slow reader holds nothing up; what is put or deleted meanwhile may be in it or not.
        """
        after: bytes | None = b""
        while after is not None:
            with self.files.reading() as view:
                found, after = _page(view, records.INDEX + prefix.encode(), after)
            yield from found

    def delete(self, name: str, version: int | None = None) -> list[Version]:
        """Deletes all versions of `name`, or that one; returns what was deleted. Raises StoreError when there is none."""
        check_name(name)
        with self.files.writing() as view:
            chosen = [_find(view, name, version, self.folder)] if version is not None else list(_versions(view, name))
            if not chosen:
                _find(view, name, None, self.folder)  # says so
            for one in chosen:
                remove_row(view, one)
        return chosen

    def attach(self, model: PeftModel | PreTrainedModel, *, resident: int = 256) -> Served:
        """`model` with the store behind it: every row of a batch through the adapter named for it, loaded when it is first needed.

        resident: how many adapters stay in memory; beyond that, the one that was used longest ago gives way.
        """
        from loraxs_core.store.serving import Served

        return Served(self, model, resident)

    def space(self) -> Space:
        """What the store holds and takes; looks at the index, not at the rows."""
        names, count, numbers = set(), 0, 0
        for one in self.entries():
            names.add(one.name)
            count, numbers = count + 1, numbers + one.size
        with self.files.reading() as view:
            plans_held = sum(1 for _ in under(view, records.PLANS))
            free = free_pages(view) * view.page
        return Space(len(names), count, plans_held, numbers, (self.folder / self.files.marker().file).stat().st_size, free)

    def plan(self, version: Version) -> Plan:
        """What `version` has in common with others."""
        with self.files.reading() as view:
            return self.plan_of(view, version)

    def plan_of(self, view: View, version: Version) -> Plan:
        """As `plan`, for who looks already."""
        if version.plan not in self._plans:
            self._plans[version.plan] = read_plan(view, version.plan)
        return self._plans[version.plan]


def place_plan(view: View, plan: Plan, shared: dict[str, bytes]) -> int:
    """The number of `plan` in the store, where it is put if it is not there yet."""
    text = plan.to_json().encode()
    place = records.PLAN_NUMBERS + records.checksum(text)
    known = view.txn.get(place)
    if known is not None:
        return int.from_bytes(known, "big")
    number = counter(view, "plan") + 1
    for digest, content in shared.items():
        view.txn.put(records.SHARED + bytes.fromhex(digest), content, overwrite=False)
    view.txn.put(place, records.number_bytes(number))
    view.txn.put(records.plan_key(number), text)
    set_counter(view, "plan", number)
    return number


def read_plan(view: View, number: int) -> Plan:
    """Raises StoreDamaged for a plan that is missing or not what was put."""
    text = bytes(view.txn.get(records.plan_key(number), b""))
    if view.txn.get(records.PLAN_NUMBERS + records.checksum(text)) != records.number_bytes(number):
        raise StoreDamaged(
            f"Plan {number} of the store is damaged, and with it what its adapters are; restore it from a backup."
        )
    return plans.of_json(text, shared_bytes(view, plans.template_checksum(text)))


def shared_bytes(view: View, digest: str) -> bytes:
    """Raises StoreDamaged for what is missing or not what was put."""
    content = view.txn.get(records.SHARED + bytes.fromhex(digest))
    if content is None or records.checksum(content).hex() != digest:
        raise StoreDamaged("What many adapters of the store have in common is damaged; restore it from a backup.")
    return bytes(content)


def place_row(view: View, version: Version, row: bytes | bytearray | memoryview) -> None:
    view.txn.put(records.key_of(version.name, version.version), records.pack(version))
    pages.write(view, version.version, row)


def read_row(view: View, version: Version) -> bytearray:
    """Raises StoreDamaged, naming the adapter, when the row is not what was put."""
    try:
        row = pages.read(view, version.version, version.size)
    except StoreDamaged as error:
        raise StoreDamaged(f"{version.label} is damaged: {error}; put it again or restore it from a backup.") from None
    if records.checksum(row) != version.checksum:
        raise StoreDamaged(
            f"{version.label} is damaged: its numbers are not those that were put; put it again or restore it from a backup."
        )
    return row


def remove_row(view: View, version: Version) -> None:
    view.txn.delete(records.key_of(version.name, version.version))
    pages.remove(view, version.version, version.size)


def counter(view: View, name: str) -> int:
    """The highest number given so far."""
    return int.from_bytes(view.txn.get(records.COUNTERS + name.encode(), b""), "big")


def set_counter(view: View, name: str, number: int) -> None:
    view.txn.put(records.COUNTERS + name.encode(), records.number_bytes(number))


def under(view: View, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, memoryview]]:
    """(key, value) of all keys that begin with `prefix`, from the key `start` on. A value holds as long as the view."""
    with view.txn.cursor() as cursor:
        there = cursor.set_range(start or prefix)
        while there and bytes(cursor.key()).startswith(prefix):
            yield bytes(cursor.key()), memoryview(cursor.value())
            there = cursor.next()


def _versions(view: View, name: str) -> Iterator[Version]:
    return (records.unpack(key, record) for key, record in under(view, records.prefix_of(name)))


def _find(view: View, name: str, version: int | None, folder: Path) -> Version:
    if version is not None and (record := view.txn.get(key := records.key_of(name, version))) is not None:
        return records.unpack(key, record)
    if version is None and (newest := next(_versions(view, name), None)) is not None:
        return newest
    there = list(_versions(view, name))
    _refuse_damaged_neighbours(view, name)
    if not there:
        raise StoreError(f"There is no adapter {name!r} in {folder}.")
    known = ", ".join(str(one.version) for one in there[:8])
    raise StoreError(f"{name!r} has no version {version} in {folder}; there are {known}{', …' if len(there) > 8 else ''}.")


def _refuse_damaged_neighbours(view: View, name: str) -> None:
    """Raises StoreDamaged where the index is damaged near `name`, which may be why it was not found: a page of the index holds fewer
    entries than are looked at here, both ways."""
    place = records.prefix_of(name)
    for forward in (True, False):
        with view.txn.cursor() as cursor:
            there = cursor.set_range(place) if forward else cursor.set_range(place) and cursor.prev()
            for _ in range(NEIGHBOURS):
                if not there or not bytes(cursor.key()).startswith(records.INDEX):
                    break
                try:
                    records.unpack(cursor.key(), cursor.value())
                except StoreDamaged as error:
                    raise StoreDamaged(f"{name!r} was not found, and the index is damaged where it would be: {error}") from None
                there = cursor.next() if forward else cursor.prev()


def _page(view: View, prefix: bytes, start: bytes, most: int = 1000) -> tuple[list[Version], bytes | None]:
    """(up to `most` versions from the key `start` on, the key to go on from)."""
    found: list[Version] = []
    for key, record in under(view, prefix, start):
        if len(found) == most:
            return found, key
        found.append(records.unpack(key, record))
    return found, None
