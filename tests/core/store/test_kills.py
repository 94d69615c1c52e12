"""kill -9 while a store is written: what was acknowledged is there, and the rest is as if it had never begun."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from loraxs_core.store import AdapterStore, backup, collect, restore, verify
from loraxs_core.store.files import Files
from tests.core.store.stores import synthetic

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def filled(tmp_path) -> AdapterStore:
    store = AdapterStore.create(tmp_path / "store")
    plan, shared, rows = synthetic(40, modules=14, r=16)
    store.put_rows((f"first-{index}", plan, shared, row) for index, row in enumerate(rows))
    return store


def _putter(folder: str, told: int) -> None:
    store = AdapterStore(folder)
    plan, shared, rows = synthetic(10_000, modules=14, r=16)
    for index, row in enumerate(rows):
        done = store.put_rows([(f"user-{index % 50}", plan, shared, row)])[0]
        os.write(told, f"{done.name} {done.version} {done.checksum.hex()}\n".encode())


@pytest.mark.parametrize("acknowledged", [1, 2, 7, 40])
def test_a_killed_put_loses_nothing_acknowledged(filled, acknowledged):
    hear, told = os.pipe()
    process = FORK.Process(target=_putter, args=(str(filled.folder), told))
    process.start()
    os.close(told)
    heard = b""
    while heard.count(b"\n") < acknowledged:
        heard += os.read(hear, 1 << 16)
    process.kill()  # it is in the middle of the next one
    process.join()
    while more := os.read(hear, 1 << 16):
        heard += more
    os.close(hear)
    for line in heard.decode().splitlines():
        name, version, digest = line.split()
        found = filled.get(name, int(version))
        assert found.version.checksum.hex() == digest
    assert verify(filled).sound
    assert filled.put_rows([("after", found.plan, {}, bytes(found.row))])  # the dead writer holds nothing up


def _collector(folder: str, function: str, after: bool) -> None:
    """Collects, and is killed when `function` of the store's files is called, or when it has returned."""
    done = getattr(Files, function)

    def dying(*arguments, **options):
        if after:
            done(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Files, function, dying)
    collect(AdapterStore(folder), keep=1)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("function", ["copy_compact", "switch", "tidy", "live_bytes"])
def test_a_killed_collection_leaves_the_store_as_it_was_or_as_it_will_be(filled, function, after):
    plan, shared, rows = synthetic(8, modules=14, r=16)
    for index, row in enumerate(rows):
        filled.put_rows([("first-0", plan, shared, row[::-1] if index else row)])
    newest = {one: filled.get(one).row for one in filled.names()}
    process = FORK.Process(target=_collector, args=(str(filled.folder), function, after))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    again = AdapterStore(filled.folder)
    assert {one: again.get(one).row for one in again.names()} == newest
    assert verify(again).sound
    collect(again, keep=1)
    assert len(list(again.folder.glob("*.mdb"))) == 1
    assert {one: again.get(one).row for one in again.names()} == newest


def _between_rename_and_removal(folder: str) -> None:
    replace = os.replace

    def dying(*arguments):
        replace(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    os.replace = dying
    collect(AdapterStore(folder))


def test_killed_between_the_new_file_and_the_end_of_the_old_one(filled):
    process = FORK.Process(target=_between_rename_and_removal, args=(str(filled.folder),))
    process.start()
    process.join(60)
    again = AdapterStore(filled.folder)
    assert len(list(again.folder.glob("*.mdb"))) == 2
    assert len(again.names()) == 40
    assert verify(again).sound
    collect(again)
    assert len(list(again.folder.glob("*.mdb"))) == 1


def _busy(folder: str) -> None:
    store = AdapterStore(folder)
    plan, shared, rows = synthetic(10_000, modules=14, r=16)
    for index, row in enumerate(rows):
        store.put_rows([("busy", plan, shared, row)])
        if index % 3 == 2:
            collect(store, keep=1)


@pytest.mark.parametrize("milliseconds", [3, 11, 29, 53, 97])
def test_killed_at_any_moment_of_puts_and_collections(filled, milliseconds):
    before = {one: filled.get(one).row for one in filled.names()}
    process = FORK.Process(target=_busy, args=(str(filled.folder),))
    process.start()
    time.sleep(milliseconds / 1000)
    process.kill()
    process.join()
    again = AdapterStore(filled.folder)
    assert {one: again.get(one).row for one in before} == before
    assert verify(again).sound


def _backer(folder: str, place: str, at: int) -> None:
    from loraxs_core.store import shards

    write, left = shards._Place.write, [at]

    def dying(self, name, content):
        left[0] -= 1
        if left[0] == 0:
            Path(place, name).write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, name, content)

    shards._Place.write = dying
    backup(AdapterStore(folder), place, shard_bytes=1 << 17)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_killed_backup_leaves_the_one_before(filled, tmp_path, at):
    place = tmp_path / "backup"
    backup(filled, str(place), shard_bytes=1 << 17)
    plan, shared, rows = synthetic(60, modules=14, r=16)
    filled.put_rows((f"later-{index}", plan, shared, row[::-1]) for index, row in enumerate(rows))
    process = FORK.Process(target=_backer, args=(str(filled.folder), str(place), at))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    first, _ = restore(str(place), tmp_path / "first")
    assert len(first.names()) == 40
    backup(filled, str(place), shard_bytes=1 << 17)
    second, _ = restore(str(place), tmp_path / "second")
    assert list(second.entries()) == list(filled.entries())
    assert verify(second).sound
