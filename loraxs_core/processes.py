"""Processes by number and birth: whether one is alive, starting one of our own modules, and ending one with its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

LOOK_SECONDS = 0.5  # how often a process looks whether it is still wanted


def process_started(pid: int) -> float | None:
    """When the process began; None when it is gone or a zombie. With the PID it names a process even after PIDs wrap around.

    In seconds since the machine started where the system says so (Linux): the clock on the wall may be set while the process
    runs, and every birth that is counted on it moves along.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if psutil.LINUX:  # what psutil itself tells two processes of one number apart by
            return round(process._proc.create_time(monotonic=True), 2)
        return round(process.create_time(), 1)
    except (psutil.Error, ValueError, OverflowError):
        return None


def boot_id() -> str | None:
    """Names the time since the machine was started: seconds and process numbers of another one mean nothing. None where unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def memory_kills() -> int | None:
    """How many processes this machine has ended for want of memory (containers' limits included); None where it does not count."""
    try:
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines())
        return int(counts["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None


def memory_was_short(before: int | None) -> bool:
    """Whether the machine has ended a process for want of memory since `memory_kills` was `before`."""
    now = memory_kills()
    return before is not None and now is not None and now > before


def how_ended(code: int, before: int | None) -> str:
    """How a process that left the exit code `code` and no word came to its end, as far as can be told: a clause. before: `memory_kills`
    when it began."""
    if code >= 0:
        how = f"with exit code {code}"
    else:
        names = {entry.value: entry.name for entry in signal.Signals}
        how = f"by {names.get(-code, f'signal {-code}')}"
    if memory_was_short(before):
        return f"{how}; the system has ended a process for want of memory since it began, which may be why"
    if os.name == "posix" and code == -signal.SIGKILL:
        return f"{how}, which is what the system does for want of memory, and what a person may do"
    return how


def identity(pid: int) -> dict:
    """The process `pid` as a document that `is_alive` understands."""
    return {"pid": pid, "process_started": process_started(pid), "boot": boot_id()}


def is_alive(known: dict) -> bool:
    """Whether the process with this `identity` still runs. Without a number or a birth: no."""
    pid, born, boot = known.get("pid"), known.get("process_started"), known.get("boot")
    if pid is None or born is None or (boot is not None and boot != boot_id()):
        return False
    return process_started(pid) == born


def start_module(
    module: str, arguments: Sequence[str], log: IO, *, stdin: int = subprocess.DEVNULL, **environment: str
) -> subprocess.Popen:
    """``python -m module arguments`` in a session of its own, which outlives this process and writes to `log`.

    It runs the same code as this process: the folder of our packages comes first on its path, the folder it is started in does not
    come at all (``-P``), whatever packages of the same names lie there. PYTHONPATH is honoured. Raises OSError.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=stdin,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ | _python_path() | environment,
    )


def _python_path() -> dict[str, str]:
    """PYTHONPATH of a child. An installed package is found without it, and ahead of the standard library it has no business."""
    root = Path(__file__).resolve().parents[1]
    if root.name in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}


def kill_tree(pid: int) -> None:
    """Ends the process and everything it started.

    It does nothing more from then on, but a busy machine takes seconds to take a large one down: that is waited for a second at most.
    """
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for child in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                child.kill()
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(1)


def end_with(parent: dict) -> None:
    """Has this process end, and what it started, within a second of the one with the `identity` `parent`, whatever it is doing then:
    importing a library takes a minute on a busy machine, and who waits for its lock meanwhile would wait in vain."""

    def watch() -> None:
        while is_alive(parent):
            time.sleep(LOOK_SECONDS)
        end_children()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_children() -> None:
    """Nothing this process started (a download by pip) outlives it."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
