"""What is kept is believed when it is what was written, and computed again otherwise: damage of every kind, no folder, two at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from loraxs_core import cache as module
from loraxs_core import cache_room
from loraxs_core.cache import CacheRemark, Kept
from loraxs_core.errors import SettingsError
from loraxs_core.paths import cache_dir

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1.5])}


@pytest.fixture(autouse=True)
def _fresh(own_folders, monkeypatch):
    """A cache of this test alone, in a process that said nothing and wrote nothing yet."""
    monkeypatch.setattr(module, "_said", {})
    monkeypatch.setattr(cache_room, "_since", None)


def both(meta, arrays):
    return meta, arrays


def kept_file(kind: str = "memory") -> Path:
    (path,) = (cache_dir() / kind).rglob("*.kept")
    return path


def remarked(call) -> list[str]:
    """What was said about the cache while `call` ran."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught if issubclass(one.category, CacheRemark)]


def test_what_was_kept_comes_back():
    kept = Kept("memory", ("loraxs_core",))
    key = kept.key("what it was computed from")
    assert kept.load(key, both) is None
    kept.save(key, meta={"x": [1, None]}, arrays=ARRAYS, model="tiny", what="a layer")
    meta, arrays = kept.load(key, both)
    assert meta == {"x": [1, None]}
    assert all((arrays[name] == ARRAYS[name]).all() and arrays[name].dtype == ARRAYS[name].dtype for name in ARRAYS)
    assert kept.load(kept.key("something else"), both) is None


def test_a_changed_line_of_code_or_another_version_is_another_key(monkeypatch, tmp_path):
    kept = Kept("memory", ("loraxs_core",))
    here = kept.key("the same")
    package = tmp_path / "loraxs_core"
    package.mkdir()
    (package / "targets.py").write_text("what all-linear means")
    monkeypatch.setattr(module, "__file__", str(package / "cache.py"))
    keys = {here}
    for text in ("what all-linear means", "what it means now"):
        (package / "targets.py").write_text(text)
        module.software.cache_clear()
        keys.add(kept.key("the same"))
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "99.0")
    module.software.cache_clear()
    keys.add(kept.key("the same"))
    module.software.cache_clear()
    assert len(keys) == 4


def test_no_bit_of_an_entry_can_change_without_a_word():
    """Every bit of a small entry, one at a time: never other numbers."""
    kept = Kept("memory", ())
    key = kept.key("k")
    kept.save(key, meta={"x": 1}, arrays=ARRAYS)
    path = kept_file()
    sound = path.read_bytes()
    for position in range(len(sound)):
        for bit in range(8):
            path.write_bytes(sound[:position] + bytes([sound[position] ^ (1 << bit)]) + sound[position + 1 :])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CacheRemark)
                assert kept.load(key, both) is None, (position, bit)


@pytest.mark.parametrize(
    "damage",
    [b"", b"null", b"[" * 200_000, b"LXSKEPT1", b"LXSKEPT1" + b"\xff" * 60, b"LXSKEPT1" + bytes(28), b"PK\x03\x04" * 99],
    ids=["empty", "null", "deep", "magic alone", "huge lengths", "zeros", "a zip"],
)
def test_a_damaged_entry_is_no_entry_and_one_remark(damage):
    kept = Kept("memory", ())
    key = kept.key("k")
    kept.save(key, meta={"x": 1})
    kept_file().write_bytes(damage)
    said = remarked(lambda: [kept.load(key, both) for _ in range(3)])
    assert len(said) == 1
    assert "is damaged" in said[0]
    assert "computed again" in said[0]
    kept.save(key, meta={"x": 2})
    assert kept.load(key, both) == ({"x": 2}, {})


def test_a_cut_a_grown_and_a_moved_entry_are_none():
    kept = Kept("memory", ())
    keys = [kept.key(name) for name in "ab"]
    for key in keys:
        kept.save(key, meta={"key": key}, arrays=ARRAYS)
    one, other = (kept.path(key) for key in keys)
    sound = one.read_bytes()
    for length in (*range(0, len(sound), 7), len(sound) - 1):
        one.write_bytes(sound[:length])
        assert kept.load(keys[0], both) is None
    one.write_bytes(sound + b"\0")
    assert kept.load(keys[0], both) is None
    other.write_bytes(sound)  # whole, and another's
    assert kept.load(keys[1], both) is None


def test_a_pipe_a_folder_and_a_link_to_nothing_do_not_hold_anybody_up():
    kept = Kept("memory", ())
    key = kept.key("k")
    kept.save(key, meta={})
    path = kept_file()
    path.unlink()
    os.mkfifo(path)
    started = time.monotonic()
    assert kept.load(key, both) is None
    assert time.monotonic() - started < 5
    path.unlink()
    path.mkdir()
    assert kept.load(key, both) is None
    assert remarked(lambda: kept.save(key, meta={}))  # a folder is in the way
    path.rmdir()
    path.symlink_to("nowhere")
    assert kept.load(key, both) is None


def test_what_decode_cannot_read_is_computed_again():
    kept = Kept("memory", ())
    key = kept.key("k")
    kept.save(key, meta={"old": 1})
    said = remarked(lambda: kept.load(key, lambda meta, arrays: meta["new"]))
    assert "KeyError" in said[0]


def test_no_cache_folder_at_all_is_a_remark(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAXS_CACHE", str(tmp_path / "file" / "cache"))
    kept = Kept("memory", ())
    said = remarked(lambda: (kept.load(kept.key("k"), both), kept.save(kept.key("k"), meta={})))
    assert len(said) == 2
    assert all("Cannot make the folder" in one for one in said)


WRITER = """
import os, sys
import numpy as np
from loraxs_core.cache import Kept
kept = Kept("memory", ())
key = kept.key("one")
numbers = np.full(200_000, float(sys.argv[1]))
print("ready", flush=True)
while True:
    kept.save(key, meta={"n": sys.argv[1]}, arrays={"a": numbers})
"""


def test_two_writers_and_a_kill_leave_one_whole_entry(own_folders):
    kept = Kept("memory", ())
    key = kept.key("one")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, number], stdout=subprocess.PIPE, env=os.environ) for number in "12"
    ]
    try:
        for writer in writers:
            writer.stdout.readline()
        for attempt in range(60):
            found = kept.load(key, both)
            if found is not None:
                meta, arrays = found
                assert (arrays["a"] == float(meta["n"])).all()
            if attempt == 30:
                writers[0].send_signal(signal.SIGKILL)
            time.sleep(0.01)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    meta, arrays = kept.load(key, both)
    assert (arrays["a"] == float(meta["n"])).all()
    assert not module.remarks()


def aged(path: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_leftovers_of_a_kill_are_swept_and_files_being_written_are_not():
    kept = Kept("memory", ())
    kept.save(kept.key("k"), meta={})
    folder = kept_file().parent
    old, young = folder / ".abc.kept.xyz", folder / ".def.kept.xyz"
    for path in (old, young):
        path.write_bytes(b"half")
    aged(old, 2 * 3600)
    cache_room.evict(None)
    assert not old.exists()
    assert young.exists()
    assert kept_file().exists()


def test_the_limit_keeps_what_was_used_last(monkeypatch):
    kept = Kept("memory", ())
    keys = [kept.key(str(number)) for number in range(4)]
    for age, key in enumerate(keys):
        kept.save(key, meta={"x": "y" * 1000})
        aged(kept.path(key), 1000 - age)
    kept.load(keys[0], both)  # used now: the next one is the oldest
    size = kept.path(keys[0]).stat().st_size
    gone = cache_room.set_limit(3 * size)
    assert [item.path for item in gone] == [kept.path(keys[1])]
    monkeypatch.setattr(cache_room, "_since", None)
    kept.save(kept.key("new"), meta={"x": "y" * 1000})  # one more: the oldest goes by itself
    assert not kept.path(keys[2]).exists()
    assert kept.path(keys[0]).exists()


def test_the_limit_is_read_from_the_environment_first(monkeypatch):
    assert cache_room.limit() == cache_room.DEFAULT_LIMIT
    cache_room.set_limit(None)
    assert cache_room.limit() is None
    monkeypatch.setenv("LORAXS_CACHE_LIMIT", "1.5 GB")
    assert cache_room.limit() == 1_500_000_000
    monkeypatch.setenv("LORAXS_CACHE_LIMIT", "much")
    with pytest.raises(SettingsError, match="'much' is no size"):
        cache_room.limit()
    monkeypatch.delenv("LORAXS_CACHE_LIMIT")
    for text in ("null", "[1", "[" * 100_000, '{"bytes": "x"}', '{"bytes": 1e999}'):
        (cache_dir() / "limit.json").write_text(text)
        assert cache_room.limit() == cache_room.DEFAULT_LIMIT


def test_what_is_not_ours_is_neither_listed_nor_removed():
    """Somebody's LORAXS_CACHE may be a folder with other things in it."""
    Kept("memory", ()).save("0" * 32, meta={})
    mine = [cache_dir() / "thesis.json", cache_dir("runs") / "config.json", cache_dir("memory") / "notes.txt"]
    for path in mine:
        path.write_text("mine")
    assert [item.kind for item in cache_room.items()] == ["memory"]
    assert len(cache_room.clear(cache_room.KINDS)) == 1
    cache_room.evict(0)
    assert all(path.exists() for path in mine)


def test_clearing_by_kind_model_and_age():
    for kind, model, age in (("memory", "a", 10), ("memory", "b", 1000), ("spectra", "a", 1000)):
        kept = Kept(kind, ())
        key = kept.key(model)
        kept.save(key, meta={}, model=model)
        aged(kept.path(key), age)
    (cache_dir("spectra", "0123") / "old.exact.safetensors").write_bytes(b"of a version without checksums")
    (cache_dir("samples", "tiny-1.0-abc") / "weights").write_bytes(b"12345")
    assert {(one.kind, one.model, one.entries) for one in cache_room.groups(cache_room.items())} == {
        ("memory", "a", 1), ("memory", "b", 1), ("spectra", "a", 1), ("older versions", "", 1), ("samples", "tiny-1.0-abc", 1),
    }  # fmt: skip
    assert [(item.kind, item.model) for item in cache_room.clear(["memory"], unused_for=100)] == [("memory", "b")]
    assert [(item.kind, item.model) for item in cache_room.clear(model="a", unused_for=100)] == [("spectra", "a")]
    with pytest.raises(SettingsError, match="nothing called 'words'"):
        cache_room.clear(["words"])
    assert {item.kind for item in cache_room.clear()} == {"memory", "older versions"}
    assert [item.bytes for item in cache_room.clear(["samples"])] == [5]
    assert cache_room.items() == []
