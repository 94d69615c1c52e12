"""Files that are there whole or not at all, on a disk that is really full."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from loraxs_core.errors import RunError
from loraxs_core.paths import atomic_file, atomic_folder, cache_dir, data_dir, refuse_unwritable

# In a process of its own, because the limit on the size of a file cannot be lifted again.
WRITER = """
import resource, sys
from pathlib import Path
from loraxs_core.errors import RunError
from loraxs_core import paths
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
target = Path(sys.argv[2])
try:
    with getattr(paths, sys.argv[1])(target) as place:
        place = place / "inside" if sys.argv[1] == "atomic_folder" else place
        if sys.argv[3] == "safetensors":
            import numpy
            from safetensors.numpy import save_file
            save_file({"a": numpy.zeros(10_000)}, place)
        else:
            place.write_bytes(b"0" * 100_000)
except RunError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_folder"])
@pytest.mark.parametrize("writer", ["safetensors", "plain"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(kind, writer, tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITER, kind, str(tmp_path / "out"), writer], capture_output=True, text=True)
    assert done.stdout.startswith(f"Cannot write {tmp_path / 'out'}: File too large; free some space"), done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [atomic_file, atomic_folder])
def test_another_error_stays_what_it_is_and_leaves_nothing(kind, tmp_path):
    with pytest.raises(ZeroDivisionError), kind(tmp_path / "out"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def interrupted(path) -> None:
    """Writes half of a file."""
    path.write_text("half")
    raise ZeroDivisionError


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        interrupted(temporary)
    assert path.read_text() == "old"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_folder_that_holds_something_is_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(RunError, match="already exists"), atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="Cannot write"), atomic_file(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_folder"])
def test_writing_never_sets_the_process_wide_umask(kind, tmp_path, monkeypatch):
    """Setting it to ask for it, two threads at a time could leave it at 0: every later file open to everyone."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    with {"atomic_file": atomic_file, "atomic_folder": atomic_folder}[kind](tmp_path / "out"):
        pass
    assert not (tmp_path / "out").stat().st_mode & 0o002


def test_a_place_that_cannot_be_written_is_known_before_there_is_anything_to_write(tmp_path):
    refuse_unwritable(tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    (tmp_path / "file").write_text("in the way")
    for wrong in (tmp_path / "file" / "out", tmp_path / "new"):
        with pytest.raises(RunError, match="Cannot write"):
            refuse_unwritable(wrong)


@pytest.mark.parametrize(("folder", "variable"), [(cache_dir, "LORAXS_CACHE"), (data_dir, "LORAXS_DATA")])
def test_a_folder_of_ours_that_cannot_be_made_says_how_to_move_it(folder, variable, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    with pytest.raises(RunError, match=f"Cannot make the folder .*; set {variable} to a folder that can be written"):
        folder("spectra")
