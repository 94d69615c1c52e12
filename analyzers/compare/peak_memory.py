"""What a trial costs the machine: peak memory and the time spent on singular vectors."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections.abc import Iterator

import psutil

SAMPLE_SECONDS = 0.05


class PeakMemory:
    """The most memory in use while the block ran.

    On CUDA: the allocator's own peak (bytes allocated). On a CPU: the largest resident set of the whole process, Python and its
    libraries included, sampled every 50 ms; memory freed by earlier trials is handed back to the system first.
    """

    def __init__(self, device: str):
        self.cuda = device.startswith("cuda")
        self.bytes = 0
        self._stop = threading.Event()

    @property
    def kind(self) -> str:
        return "CUDA memory allocated" if self.cuda else "resident memory of the process"

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.cuda:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            _give_back()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            import torch

            self.bytes = torch.cuda.max_memory_allocated()
        else:
            self._stop.set()
            self._thread.join()

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._stop.wait(SAMPLE_SECONDS):
                self.bytes = max(self.bytes, process.memory_info().rss)
                return


@contextlib.contextmanager
def without_basis_cache() -> Iterator[None]:
    """Singular vectors are computed afresh inside the block, so that their time is what a first run pays."""
    name = "LORAXS_BASES_CACHE"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _give_back() -> None:
    """Returns freed heap pages to the system where the C library can (glibc); elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
