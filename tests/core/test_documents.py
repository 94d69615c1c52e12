"""Documents that anything may have happened to."""

from __future__ import annotations

import os

import pytest

from loraxs_core.documents import open_to_append, read_bytes, read_object
from loraxs_core.errors import RunError, is_out_of_memory


def test_an_object_is_read_and_anything_else_is_one_sentence(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError):
        read_object(path)
    path.write_text('{"a": 1}')
    assert read_object(path) == {"a": 1}
    for text in ("", "[1]", "null", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"):
        path.write_text(text)
        with pytest.raises(RunError, match="is damaged") as raised:
            read_object(path)
        assert "\n" not in str(raised.value)
    with pytest.raises(RunError, match="more than such a file can have"):
        read_object(path, most=5)
    with pytest.raises(RunError, match="no plain file"):
        read_object(tmp_path)


def test_the_end_of_a_long_file(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes(b"0123456789")
    assert read_bytes(path, 4, tail=True) == b"6789"


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_pipe_holds_nobody(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="no plain file"):
        read_bytes(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"):
        open_to_append(tmp_path / "pipe")


def test_what_says_that_memory_is_used_up():
    allocator = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
    )
    assert is_out_of_memory(allocator)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    wrapped = ValueError("padding failed")
    wrapped.__cause__ = allocator
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(OSError(28, "No space left on device"))
