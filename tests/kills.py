"""Killing work at its n-th write, as a power cut or the system's killer would: before a rename, or with half a line written.

The victims are forked from a server that has imported torch once, so that a loop over every write takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path

PRELOADED = ["analyzers.compare.trial", "analyzers.compare.sweep", "analyzers.spectra", "app.jobs", "tests.kills"]


def context() -> multiprocessing.context.ForkServerContext:
    """The server that every child of the tests is forked from."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    return server


def started(target: Callable, *arguments: object) -> multiprocessing.process.BaseProcess:
    """``target(*arguments)`` in a child of that server. Whatever is ``__main__`` here, a page that a test before this one ran among
    it, is not imported there."""
    process = context().Process(target=target, args=arguments)
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main
    return process


def killed(work: Callable[[str], object], folder: Path, at: int | None) -> bool:
    """Runs ``work(folder)`` in a process of its own that is killed at its write number `at` (never, for None); whether it was.

    `work` is a function of a module. Raises AssertionError when it ended in another way.
    """
    process = started(_victim, work, str(folder), at, dict(os.environ))
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def _victim(work: Callable[[str], object], folder: str, at: int | None, environment: dict) -> None:
    from analyzers.compare import trial_checkpoint
    from loraxs_core import background

    os.environ.update(environment)
    trial_checkpoint.EVERY_SECONDS, trial_checkpoint.SHARE = 0.0, 1e9
    background.WRITE_EVERY_SECONDS = 0.0  # every word is written, whatever the load
    left = [at]

    def due() -> bool:
        if left[0] is None:
            return False
        left[0] -= 1
        return left[0] <= 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    replace, opened = os.replace, background.open_to_append

    def dying_replace(source, target):
        if due():
            die()
        return replace(source, target)

    def dying_append(path):
        file = opened(path)
        if due():
            file.write(b'{"trial": "cut')
            file.flush()
            die()
        return file

    os.replace, background.open_to_append = dying_replace, dying_append
    work(folder)
