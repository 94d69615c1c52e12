"""Entries are found by themselves, in a stable order; two of one name are a mistake that is said at once."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from loraxs_core.registry import found, named


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package of this test's own."""
    package = tmp_path / "things_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shape.py").write_text("def helper(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
        del sys.modules[name]


def entry(name: str) -> str:
    return f"SimpleNamespace(name={name!r})"


def write(folder, file: str, value: str) -> None:
    (folder / f"{file}.py").write_text(f"from types import SimpleNamespace\nTHING = {value}\n")


def test_one_entry_several_and_a_mapping(folder):
    write(folder, "b_two", f"({entry('two')}, {entry('three')})")
    write(folder, "a_one", entry("one"))
    write(folder, "c_named", "{'four': SimpleNamespace(label='x')}")
    write(folder, "d_without_name", "SimpleNamespace()")
    assert list(found("things_of_a_test", "THING")) == ["one", "two", "three", "four", "d_without_name"]
    assert list(found("things_of_a_test", "THING", first=["c_named", "absent"]))[:2] == ["four", "one"]
    assert named(folder, "THING", first=["b_two"]) == ["b-two", "a-one", "c-named", "d-without-name"]
    assert isinstance(found("things_of_a_test", "THING")["one"], SimpleNamespace)


def test_two_entries_of_one_name(folder):
    write(folder, "one", entry("same"))
    write(folder, "other", entry("same"))
    with pytest.raises(ValueError, match="two entries called 'same'"):
        found("things_of_a_test", "THING")
