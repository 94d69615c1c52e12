"""What the commands share: tables, JSON, a progress bar. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from app.text import plain as shown
from loraxs_core.progress import Cancellation, Progress, ProgressCallback, seconds

# Where the output is no terminal (a pipe, a log), rows are not folded to 80 columns.
out = Console(width=None if sys.stdout.isatty() else 200, highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())
err = Console(stderr=True, highlight=False, emoji=False)

LOG_EVERY_SECONDS = 15.0
MANY_ROWS = 500  # from which a table is laid out here and not by Rich


def print_json(value: object) -> None:
    """One JSON document on standard output; NaN and infinities become null, NumPy numbers plain ones."""
    print(json.dumps(plain(value), indent=2, allow_nan=False))


def plain(value: object) -> object:
    """`value` in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, note: str = "") -> None:
    """A table of already formatted cells; numbers (and columns whose title ends in a unit) stand to the right.

    Words are shown as they are: no markup, no escape code of a terminal, no mark that turns the writing.
    """
    shown_rows = [[shown(cell) for cell in row] for row in rows]
    right = [bool(rows) and all(_numeric(row[index]) for row in shown_rows) for index in range(len(columns))]
    titles = [shown(column) for column in columns]
    if len(rows) < MANY_ROWS or not _print_aligned(shown(title), titles, shown_rows, right):
        table = Table(
            title=Text(shown(title)), title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        for index, column in enumerate(titles):
            table.add_column(Text(column), justify="right" if right[index] else "left", no_wrap=index == 0, overflow="fold")
        for row in shown_rows:
            table.add_row(*map(Text, row))
        out.print(table)
    if note:
        out.print(Text(shown(note, lines=True), style="dim"))


def _print_aligned(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> bool:
    """The same table without Rich's layout, which takes half a millisecond a row; False, and nothing, where a row would have to be
    folded."""
    lines = [columns, *rows]
    widths = [max(cell_len(line[index]) for line in lines) for index in range(len(columns))]
    if (
        sum(widths) + 2 * (len(widths) - 1) > out.width
        or cell_len(title) > sum(widths)
        or any("\n" in cell for line in lines for cell in line)
    ):
        return False

    def aligned(line: Sequence[str]) -> str:
        cells = []
        for cell, width, at_end in zip(line, widths, right, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if at_end else cell + space)
        return "  ".join(cells)

    out.print(Text(title), soft_wrap=True)
    out.print(Text(aligned(columns), style="bold"), soft_wrap=True)
    out.file.writelines(f"{aligned(row)}\n" for row in rows)
    return True


def say(text: str) -> None:
    """A line for the person, on standard error, so that pipes stay clean."""
    err.print(Text(shown(text, lines=True)), soft_wrap=True)


def print_text(text: str) -> None:
    """Lines on standard output, such as a file's content, unfolded."""
    out.print(Text(shown(text, lines=True)), soft_wrap=True)


@contextlib.contextmanager
def progress_bar(label: str, *, quiet: bool = False) -> Iterator[ProgressCallback]:
    """A callback that draws a bar with time left on a terminal, and prints a line now and then elsewhere.

    While the block runs, SIGTERM and the end of the terminal (SIGHUP) stop it as Ctrl-C does, so that it can say what became of it.
    """
    with _stopped_by_signals(), _shown(label, quiet) as show:
        yield show


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Cancellation, once: what cleans up after the first must not be interrupted by a second. A signal that is
    ignored (``nohup``) or somebody else's stays as it is."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in wanted if signal.getsignal(number) is signal.SIG_DFL}

    def stop(*_: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise Cancellation

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _shown(label: str, quiet: bool) -> Iterator[ProgressCallback]:
    if quiet:
        yield lambda progress: None
        return
    if not err.is_terminal:
        yield _line_logger(label)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Bar(
        *columns, TextColumn("{task.fields[left]}"), TextColumn("[dim]{task.fields[message]}"), console=err, transient=True
    ) as bar:
        task = bar.add_task(escape(shown(label)), total=1.0, left="", message="")

        def show(progress: Progress) -> None:
            left = f"{seconds(progress.remaining)} left" if progress.remaining is not None else ""
            bar.update(task, completed=progress.fraction, left=left, message=escape(shown(progress.message[:60])))

        yield show


def _line_logger(label: str) -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_EVERY_SECONDS:
            last = time.monotonic()
            say(f"{label}: {100 * progress.fraction:.0f} %, {seconds(progress.remaining)} left. {progress.message}")

    return show


def _numeric(cell: object) -> bool:
    text = str(cell).lstrip("$-+±<>~≈ ")
    return text[:1].isdigit() or text in ("—", "")
