"""A device that fails (EIO) at any step of writing or reading: one sentence, and what was there is whole."""

from __future__ import annotations

import builtins
import errno
import os

import pytest

from tests.app.test_cli import call


class Failing:
    """Stands for a function of the system, which fails with `number` at its call `at` for a path that `of` is in."""

    def __init__(self, real, at: int, number: int = errno.EIO, of: str = ""):
        self.real, self.at, self.number, self.of, self.calls = real, at, number, of, 0

    def __call__(self, *given, **named):
        if not self.of or self.of in str(given[0]):
            self.calls += 1
            if self.calls == self.at:
                raise OSError(self.number, os.strerror(self.number), str(given[0]))
        return self.real(*given, **named)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EROFS], ids=["EIO", "ESTALE", "EROFS"])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_write_that_fails_leaves_the_old_file_whole(capsys, own_folders, tiny_bert, monkeypatch, step, at, number):
    out = own_folders / "plan.json"
    out.write_text("mine")
    failing = Failing(getattr(os, step), at, number)
    monkeypatch.setattr(os, step, failing)
    code, _, err = call(capsys, "plan", str(tiny_bert), "--like-rank", "4", "--out", str(out), "--force")
    monkeypatch.undo()
    assert "Traceback" not in err
    if code:
        assert (code, out.read_text()) == (2, "mine")
        assert len(err.strip().splitlines()) == 1, err
    else:  # what failed was no part of it: the folder's own sync, the cache
        assert out.read_text().startswith("{")
    assert [path.name for path in own_folders.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("at", [1, 2, 3, 4, 9, 20])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_read_that_fails_is_a_sentence(capsys, own_folders, tiny_bert, monkeypatch, name, at):
    failing = Failing(builtins.open, at, of=name)
    monkeypatch.setattr(builtins, "open", failing)
    code, out, err = call(capsys, "scan", str(tiny_bert), "--json")
    monkeypatch.undo()
    assert "Traceback" not in err
    assert code in (0, 2), err
    if code:
        assert name in err, err
    elif failing.calls >= at:
        assert call(capsys, "scan", str(tiny_bert), "--json")[1] == out
