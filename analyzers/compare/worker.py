"""The process of a detached run: ``python -m analyzers.compare.worker RUN_FOLDER``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

os.environ["LORAXS_WORKER"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from loraxs_core.errors import WorkbenchError
from loraxs_core.progress import Cancellation


def main(folder: str) -> int:
    """Runs what is left of the run in `folder`. Returns 0, 2 for an error in one sentence, 130 when cancelled."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from analyzers.compare.runs import RunFolder
    from analyzers.compare.sweep import run_sweep

    try:
        run_sweep(RunFolder(folder))
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 2
    except Cancellation:
        return 130
    finally:
        _end_children()
    return 0


def _stop(*_: object) -> None:
    """Once: what cleans up after the first request must not be interrupted by a second."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Cancellation


def _end_children() -> None:
    """Nothing this process started (a download by pip) outlives it."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
