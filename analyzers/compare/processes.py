"""Processes by number and birth: whether one is alive, and ending one with its children."""

from __future__ import annotations

import contextlib


def process_started(pid: int) -> float | None:
    """When the process began; None when it is gone or a zombie. With the PID it names a process even after PIDs wrap around."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except (psutil.Error, ValueError):
        return None


def kill_tree(pid: int) -> None:
    """Ends the process and everything it started."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for child in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                child.kill()
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(5)
