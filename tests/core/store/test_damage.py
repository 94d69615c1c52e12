"""Bits that flip: whose they were is said, and nothing that is read is ever other than what was put."""

from __future__ import annotations

import contextlib
import random
import shutil

import pytest

from loraxs_core.errors import StoreDamaged, WorkbenchError
from loraxs_core.store import AdapterStore, backup, collect, drop_damaged, restore, verify
from loraxs_core.store.files import MARKER
from tests.core.store.stores import synthetic


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> AdapterStore:
    store = AdapterStore.create(tmp_path_factory.mktemp("damage") / "store")
    plan, shared, rows = synthetic(12, modules=14, r=16)
    store.put_rows((f"user-{index}", plan, shared, row) for index, row in enumerate(rows))
    collect(store)  # so that nothing of it stands in the file twice
    return store


def copied(original: AdapterStore, folder) -> AdapterStore:
    shutil.copytree(original.folder, folder)
    return AdapterStore(folder)


def data_of(store: AdapterStore):
    return store.folder / store.files.marker().file


def flip(path, position: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def test_a_flipped_bit_of_a_row_is_said_by_name(original, tmp_path):
    row = original.get("user-7").row
    at = data_of(original).read_bytes().find(bytes(row[:200]))
    store = copied(original, tmp_path / "copy")
    flip(data_of(store), at + 1234, 3)
    with pytest.raises(StoreDamaged, match="user-7@8 is damaged"):
        store.get("user-7")
    report = verify(store)
    assert [one.label for one in report.damaged] == ["user-7@8"]
    assert not report.file
    assert report.versions == 11
    assert store.get("user-6").row == original.get("user-6").row
    with pytest.raises(StoreDamaged, match="user-7@8"):
        backup(store, str(tmp_path / "backup"))
    assert drop_damaged(store) == ["user-7@8"]
    assert verify(store).sound
    assert len(store.names()) == 11


def test_a_flipped_bit_of_the_index_is_said_by_name(original, tmp_path):
    whole = data_of(original).read_bytes()
    at = whole.find(b"iuser-3\0")
    store = copied(original, tmp_path / "copy")
    flip(data_of(store), at + 20, 0)  # of its record
    with pytest.raises(StoreDamaged, match="user-3@4 is damaged"):
        store.get("user-3")
    assert "user-3@4" in [one.label for one in verify(store).damaged]
    drop_damaged(store)
    assert "user-3" not in store.names()


def test_a_flipped_bit_of_a_name_is_no_other_adapter(original, tmp_path):
    at = data_of(original).read_bytes().find(b"iuser-3\0")
    store = copied(original, tmp_path / "copy")
    flip(data_of(store), at + 6, 2)  # user-3 becomes user-7's double
    assert not verify(store).sound
    with pytest.raises(StoreDamaged, match="'user-3' was not found, and the index is damaged where it would be"):
        store.get("user-3")
    for name in original.names():  # none is lost without a word
        with contextlib.suppress(StoreDamaged):
            assert store.get(name).row == original.get(name).row


def test_a_flipped_bit_of_what_all_share_is_said(original, tmp_path):
    template = original.get("user-0").plan.template
    at = data_of(original).read_bytes().find(template[100:200])
    store = copied(original, tmp_path / "copy")
    flip(data_of(store), at + 10, 5)
    with pytest.raises(StoreDamaged, match=r"Plan 1|in common"):
        store.get("user-0")
    assert not verify(store).sound


def test_no_flip_anywhere_is_silent(original, tmp_path):
    """Of 300 places spread over the whole file, LMDB's own pages too: either the check says so, or nothing that is read has changed."""
    truth = {name: bytes(original.get(name).row) for name in original.names()}
    store = copied(original, tmp_path / "copy")
    path = data_of(store)
    size, choose = path.stat().st_size, random.Random(0)
    said = 0
    for _ in range(300):
        position, bit = choose.randrange(size), choose.randrange(8)
        flip(path, position, bit)
        report = verify(store)
        said += not report.sound
        if report.sound:
            assert {name: bytes(store.get(name).row) for name in store.names()} == truth
        else:
            for name, row in truth.items():
                with contextlib.suppress(WorkbenchError):  # right, or an error that a person can read
                    assert bytes(store.get(name).row) == row
        flip(path, position, bit)
    assert verify(store).sound
    assert said > 200


def test_damaged_backups_and_markers_are_refused(original, tmp_path):
    place = tmp_path / "backup"
    backup(original, str(place))
    shard = next(place.glob("rows-*.safetensors"))
    flip(shard, shard.stat().st_size - 5, 1)
    with pytest.raises(StoreDamaged, match=shard.name):
        restore(str(place), tmp_path / "restored")
    store = copied(original, tmp_path / "copy")
    text = (store.folder / MARKER).read_text()
    (store.folder / MARKER).write_text(text.replace("rows-000002", "rows-000007"))
    with pytest.raises(StoreDamaged, match=r"store\.json is damaged"):
        AdapterStore(store.folder)
