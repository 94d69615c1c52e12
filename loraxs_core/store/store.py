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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from loraxs_core.errors import StoreDamaged, StoreError
from loraxs_core.store import pages, plans, records
from loraxs_core.store.files import Files, View, free_pages
from loraxs_core.store.plans import Plan
from loraxs_core.store.records import Version, check_name

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

BATCH_BYTES = 64 << 20  # of rows in one commit, where many are put


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter out of a store, its checksum found right. row: all of its own numbers. shared: what it has in common, by checksum."""

    version: Version
    plan: Plan
    row: bytearray
    shared: dict[str, bytes]

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What its adapter_model.safetensors holds, proof included."""
        return self.plan.tensors(self.row, self.shared)

    @cached_property
    def cores(self) -> dict[str, torch.Tensor]:
        """Module name -> R (r x r), as it is stored."""
        numbers = self.plan.numbers(self.row)
        return {part.module: numbers[part.key] for part in self.plan.parts if part.module is not None}


@dataclass(frozen=True)
class Space:
    """What a store takes. adapters, versions: how many names and rows. numbers: bytes of the rows. file: bytes on the disk."""

    adapters: int
    versions: int
    plans: int
    numbers: int
    file: int
    free: int

    @property
    def overhead(self) -> float:
        """Bytes on the disk beyond the numbers, as a share of them; pages that the next puts will fill are not counted."""
        return (self.file - self.free - self.numbers) / self.numbers if self.numbers else 0.0


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
        from loraxs_core.store.folders import taken

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
            number = _counter(view, b"version")
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
            if number != _counter(view, b"version"):
                view.txn.put(b"version", number.to_bytes(8, "big"), db=view.meta)
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

    def versions(self, name: str) -> list[Version]:
        """All versions of `name`, the newest first. Raises StoreError when there are none."""
        check_name(name)
        with self.files.reading() as view:
            found = list(_versions(view, name))
        if not found:
            raise StoreError(f"There is no adapter {name!r} in {self.folder}.")
        return found

    def names(self, prefix: str = "") -> list[str]:
        """The names that begin with `prefix`, in order."""
        return list(dict.fromkeys(one.name for one in self.entries(prefix)))

    def entries(self, prefix: str = "") -> Iterator[Version]:
        """All versions of all adapters whose names begin with `prefix`, by name and then the newest first.

        Looks at a thousand at a time, so that a slow reader holds nothing up; what is put or deleted meanwhile may be in it or not.
        """
        start = prefix.encode()
        while True:
            with self.files.reading() as view:
                found, after = _page(view, start, prefix.encode())
            yield from found
            if after is None:
                return
            start = after

    def delete(self, name: str, version: int | None = None) -> list[Version]:
        """Deletes all versions of `name`, or that one; returns what was deleted. Raises StoreError when there is none."""
        check_name(name)
        with self.files.writing() as view:
            chosen = list(_versions(view, name)) if version is None else [_find(view, name, version, self.folder)]
            if not chosen:
                raise StoreError(f"There is no adapter {name!r} in {self.folder}.")
            for one in chosen:
                remove_row(view, one)
        return chosen

    def space(self) -> Space:
        """What the store holds and takes; looks at the index, not at the rows."""
        names, count, numbers = set(), 0, 0
        for one in self.entries():
            names.add(one.name)
            count, numbers = count + 1, numbers + one.size
        with self.files.reading() as view:
            plans_held = view.txn.stat(view.plans)["entries"] // 2
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
    text = plan.to_json()
    digest = plans.digest_of(text)
    known = view.txn.get(digest, db=view.plans)
    if known is not None:
        return int.from_bytes(known, "big")
    number = _counter(view, b"plan") + 1
    for name, content in shared.items():
        view.txn.put(bytes.fromhex(name), content, overwrite=False, db=view.shared)
    view.txn.put(digest, records.number_key(number), db=view.plans)
    view.txn.put(records.number_key(number), text.encode(), db=view.plans)
    view.txn.put(b"plan", records.number_key(number), db=view.meta)
    return number


def read_plan(view: View, number: int) -> Plan:
    """Raises StoreDamaged for a plan that is missing or not what was put."""
    text = view.txn.get(records.number_key(number), db=view.plans)
    text = None if text is None else bytes(text)
    if text is None or view.txn.get(xxh3_128_digest(text), db=view.plans) != records.number_key(number):
        raise StoreDamaged(
            f"Plan {number} of the store is damaged, and with it what its adapters are; restore it from a backup."
        )
    return plans.of_json(text, shared_bytes(view, plans.template_checksum(text)))


def shared_bytes(view: View, digest: str) -> bytes:
    content = view.txn.get(bytes.fromhex(digest), db=view.shared)
    if content is None or xxh3_128_hexdigest(content) != digest:
        raise StoreDamaged("What many adapters of the store have in common is damaged; restore it from a backup.")
    return bytes(content)


def place_row(view: View, version: Version, row: bytes | bytearray | memoryview) -> None:
    view.txn.put(records.key_of(version.name, version.version), records.pack(version), db=view.index)
    pages.write(view.txn, view.rows, view.pieces, version.version, row, view.page)


def read_row(view: View, version: Version) -> bytearray:
    """Raises StoreDamaged, naming the adapter, when the row is not what was put."""
    try:
        row = pages.read(view.txn, view.rows, view.pieces, version.version, version.size, view.page)
    except StoreDamaged as error:
        raise StoreDamaged(f"{version.label} is damaged: {error}; put it again or restore it from a backup.") from None
    if records.checksum(row) != version.checksum:
        raise StoreDamaged(
            f"{version.label} is damaged: its numbers are not those that were put; put it again or restore it from a backup."
        )
    return row


def remove_row(view: View, version: Version) -> None:
    view.txn.delete(records.key_of(version.name, version.version), db=view.index)
    pages.remove(view.txn, view.rows, view.pieces, version.version, version.size, view.page)


def _counter(view: View, name: bytes) -> int:
    return int.from_bytes(view.txn.get(name, b"", db=view.meta), "big")


def _versions(view: View, name: str) -> Iterator[Version]:
    prefix = records.prefix_of(name)
    with view.txn.cursor(view.index) as cursor:
        found = cursor.set_range(prefix)
        while found and bytes(cursor.key()[:-8]) == prefix:
            yield records.unpack(cursor.key(), cursor.value())
            found = cursor.next()


def _find(view: View, name: str, version: int | None, folder: Path) -> Version:
    if version is None:
        found = next(_versions(view, name), None)
        if found is None:
            raise StoreError(f"There is no adapter {name!r} in {folder}.")
        return found
    key = records.key_of(name, version)
    record = view.txn.get(key, db=view.index)
    if record is None:
        there = [str(one.version) for one in _versions(view, name)]
        raise StoreError(
            f"{name!r} has no version {version} in {folder}; there are {', '.join(there[:8])}."
            if there
            else f"There is no adapter {name!r} in {folder}."
        )
    return records.unpack(key, record)


def _page(view: View, start: bytes, prefix: bytes, most: int = 1000) -> tuple[list[Version], bytes | None]:
    """(up to `most` versions from the key `start` on, the key to go on from)."""
    found: list[Version] = []
    with view.txn.cursor(view.index) as cursor:
        there = cursor.set_range(start) if start else cursor.first()
        while there and bytes(cursor.key()).startswith(prefix):
            if len(found) == most:
                return found, bytes(cursor.key())
            found.append(records.unpack(cursor.key(), cursor.value()))
            there = cursor.next()
    return found, None
