"""Ray's cluster: the one that is running, or a new one on this machine. A process that joins it goes on being stopped as it was before."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import ModuleType

from loraxs_core.errors import RunError
from loraxs_core.progress import Cancellation


def join_or_start(ray: ModuleType, cpus: int) -> None:
    """Joins the cluster that ``RAY_ADDRESS`` names or that is running; else starts one of `cpus` on this machine. Nothing where it is joined.

    Raises RunError where neither can be done.
    """
    if ray.is_initialized():
        return
    with _own_sigterm():
        try:
            try:
                ray.init(address="auto", log_to_driver=False)
            except ConnectionError:
                ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
        except Exception as error:  # Ray raises just that where its processes do not come up in time
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise RunError(
                f"Ray's cluster can be neither joined nor started: {first.rstrip('.')}; try again when the machine has less to do, or do "
                "without Ray."
            ) from error


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray takes SIGTERM over, and ends the process with it: whoever asks for a cancellation would be told of a crash."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        yield
    except SystemExit as ended:  # asked to stop while it joined
        if ended.code == signal.SIGTERM:
            raise Cancellation from ended
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
