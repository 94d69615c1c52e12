"""What the terminal is given: a table of thousands of rows looks as a small one does."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from app import terminal

COLUMNS = ("name", "number", "模型 x", "last")
ROWS = [("a.b.c", 12, "模", "text"), ("dd\x1b[31m", -1234.5, "x", "—"), ("e", 7, "[red]y", "a long one")]


@pytest.mark.parametrize("width", [200, 30], ids=["wide", "too narrow for a row"])
@pytest.mark.parametrize("rows", [ROWS, []], ids=["rows", "none"])
def test_a_long_table_is_laid_out_as_a_short_one(monkeypatch, width, rows):
    def printed(many: int) -> str:
        monkeypatch.setattr(
            terminal, "out", Console(file=io.StringIO(), width=width, highlight=False, emoji=False, soft_wrap=True)
        )
        monkeypatch.setattr(terminal, "MANY_ROWS", many)
        terminal.print_table("A title", COLUMNS, rows, note="A note.")
        return terminal.out.file.getvalue()

    assert printed(0) == printed(1000)


def test_a_long_table_is_not_given_to_rich(monkeypatch):
    """Rich lays out a thousand rows in half a second; a model of 1,500 layers has ten thousand."""
    monkeypatch.setattr(terminal, "Table", None)
    monkeypatch.setattr(terminal, "out", Console(file=io.StringIO(), width=200))
    terminal.print_table("A title", COLUMNS, ROWS * 200)
    assert len(terminal.out.file.getvalue().splitlines()) == 2 + 600


SIGNALS = """
import signal
from app import terminal
from loraxs_core.progress import Cancellation

def work(number):
    with terminal.progress_bar("work", quiet=True):
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # cleaning up is not interrupted by a second

for number in (signal.SIGTERM, signal.SIGHUP):
    try:
        work(number)
    except Cancellation:
        print("stopped")
    assert signal.getsignal(number) is signal.SIG_DFL
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with terminal.progress_bar("work", quiet=True):
    signal.raise_signal(signal.SIGHUP)  # nohup
print("went on")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_the_end_of_the_terminal_and_sigterm_stop_work_as_ctrl_c_does():
    """In a process of its own, whose main thread it is: elsewhere nothing would stand between the signal and the end of the tests."""
    ended = subprocess.run([sys.executable, "-c", SIGNALS], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.split("\n")) == (0, ["stopped", "stopped", "went on", ""]), ended.stderr
