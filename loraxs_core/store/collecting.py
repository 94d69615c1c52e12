"""Giving back what nothing needs: old versions, plans without adapters, free pages."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraxs_core.errors import SettingsError, StoreDamaged, StoreError
from loraxs_core.store import records
from loraxs_core.store.checking import verify_locked
from loraxs_core.store.files import OneFile, file_name, file_number
from loraxs_core.store.store import AdapterStore, read_plan, remove_row, under

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
    used = {records.unpack(key, record).plan for key, record in under(view, records.INDEX)}
    held = {int.from_bytes(key[1:], "big") for key, _ in under(view, records.PLANS)}
    needed: set[str] = set()
    for number in held & used:
        plan = read_plan(view, number)
        needed |= {digest for *_, digest in plan.shared} | {plan.template_digest}
    gone = [records.plan_key(number) for number in held - used]
    gone += [key for key, number in under(view, records.PLAN_NUMBERS) if int.from_bytes(number, "big") not in used]
    gone += [key for key, _ in under(view, records.SHARED) if key[1:].hex() not in needed]
    for key in gone:
        view.txn.delete(key)
    return len(held - used)


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
