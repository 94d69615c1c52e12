"""Giving back what nothing needs: old versions, plans without adapters, free pages."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraxs_core.errors import SettingsError, StoreDamaged, StoreError
from loraxs_core.store import records
from loraxs_core.store.checking import verify_locked
from loraxs_core.store.files import OneFile, file_name, file_number
from loraxs_core.store.store import AdapterStore, read_plan, remove_row

if TYPE_CHECKING:
    from loraxs_core.store.files import View

A_COMMIT = 4096  # versions deleted in one commit


@dataclass(frozen=True)
class Collected:
    """What a collection removed. versions: how many. plans: without an adapter. bytes: given back to the disk."""

    versions: int
    plans: int
    bytes: int


def collect(store: AdapterStore, *, keep: int | None = None, compact: bool = True) -> Collected:
    """Deletes all but the newest `keep` versions of every adapter (none when left out) and plans that no adapter has; then, with
    `compact`, writes the file anew without its free pages, checks every row of it, and puts it in the old one's place.

    Killed at any moment, it leaves the store as it was or as it will be. Raises SettingsError for a `keep` below 1, StoreDamaged when a
    row is damaged (the old file stays), StoreError when the disk has no room for both files.
    """
    if keep is not None and keep < 1:
        raise SettingsError(f"At least 1 version has to be kept, not {keep}; loraxs store delete removes an adapter.")
    before = (store.folder / store.files.marker().file).stat().st_size
    with store.files.locked():
        store.files.tidy()
        versions = _old(store, keep) if keep is not None else 0
        with store.files.writing_alone() as view:
            plans = _unused_plans(view)
        if compact:
            _compact(store)
    after = (store.folder / store.files.marker().file).stat().st_size
    return Collected(versions, plans, max(0, before - after))


def _old(store: AdapterStore, keep: int) -> int:
    count, seen, old = 0, "", []
    for one in store.entries():
        count = count + 1 if one.name == seen else 1
        seen = one.name
        if count > keep:
            old.append(one)
    for start in range(0, len(old), A_COMMIT):
        with store.files.writing_alone() as view:
            for one in old[start : start + A_COMMIT]:
                remove_row(view, one)
    return len(old)


def _unused_plans(view: View) -> int:
    """Removes the plans that no adapter has and the shared parts that no plan has."""
    used, needed = set(), set()
    with view.txn.cursor(view.index) as cursor:
        for key, record in cursor:
            used.add(records.unpack(key, record).plan)
    with view.txn.cursor(view.plans) as cursor:
        held = [(bytes(key), bytes(value)) for key, value in cursor]
    numbers = {int.from_bytes(key, "big") for key, _ in held if len(key) == len(records.number_key(0))}
    for number in numbers & used:
        plan = read_plan(view, number)
        needed |= {digest for *_, digest in plan.shared} | {plan.template_digest}
    for key, value in held:
        if int.from_bytes(key if len(key) == len(records.number_key(0)) else value, "big") not in used:
            view.txn.delete(key, db=view.plans)
    with view.txn.cursor(view.shared) as cursor:
        shared = [bytes(key) for key, _ in cursor]
    for key in shared:
        if key.hex() not in needed:
            view.txn.delete(key, db=view.shared)
    return len(numbers - used)


def _compact(store: AdapterStore) -> None:
    """The file anew without free pages. Only under the store's lock."""
    number = file_number(store.files.marker().file) + 1
    following = OneFile(store.folder, file_name(number))
    room = shutil.disk_usage(store.folder).free
    if room < store.files.live_bytes():
        raise StoreError(
            f"The disk of {store.folder} has {room:,} bytes free, too few to write the store anew beside the old file; free some, or leave "
            "the free pages to later puts (--no-compact)."
        )
    try:
        store.files.copy_compact(store.folder / file_name(number))
        report = verify_locked(following)
        if not report.sound:
            what = [one.what for one in report.damaged] + list(report.file)
            raise StoreDamaged(f"The store was not compacted, because not all of it is sound: {what[0]}")
    except BaseException:
        following.discard()
        raise
    store.files.switch(file_name(number))
