"""What calling OpenBLAS directly and reading files ourselves are worth, against SciPy's wrappers, NumPy and the safetensors library.

    python -m benchmarks.low_level

Calling OpenBLAS directly (`loraxs_core/openblas.py`, `symmetric_eigenvalues.py`) stays only while this shows 1.3 times or more.
`safetensors_file.py` is there for formats that the library's NumPy door refuses, such as bfloat16; were the library three times
faster elsewhere, it would be asked there.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from loraxs_core import openblas
from loraxs_core.safetensors_file import SafetensorsFile
from loraxs_core.symmetric_eigenvalues import eigenvalues

REPEATS = 3
ENOUGH, THREE_TIMES_SLOWER = 1.3, 1 / 3


def main() -> None:
    """Prints one line a comparison: seconds of ours and of the library, best of `REPEATS`, and their ratio."""
    with threadpool_limits(1):
        _tell("Gram matrices of 2048 x 1024 in two threads, ctypes against SciPy's wrapper", *grams())
        _tell("eigenvalues of 3072 x 3072, two-stage against NumPy", *reductions())
    for dtype in ("float32", "float16"):
        _tell(
            f"columns of a 4096 x 4096 {dtype} file, 512 at a time, ours against safetensors",
            *columns(dtype),
            THREE_TIMES_SLOWER,
        )


def grams() -> tuple[float, float]:
    """(with ctypes, without), of two threads that compute eight Gram matrices each."""
    side = np.random.default_rng(0).standard_normal((2048, 1024))

    def work() -> None:
        for _ in range(8):
            openblas.add_gram(side, np.zeros((1024, 1024), order="F"), tall=True)

    def both() -> None:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ours = _best(both)
    with mock.patch.object(openblas, "library", return_value=None):
        return ours, _best(both)


def reductions() -> tuple[float, float]:
    """(two-stage, NumPy's eigvalsh) of one symmetric matrix."""
    side = np.random.default_rng(1).standard_normal((3072, 3072))
    symmetric = np.asfortranarray(side @ side.T)
    return _best(lambda: eigenvalues(symmetric.copy(order="F"))), _best(lambda: np.linalg.eigvalsh(symmetric))


def columns(dtype: str) -> tuple[float, float]:
    """(ours, the library's slices) of reading a whole matrix in vertical strips."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({"w": np.random.default_rng(2).standard_normal((4096, 4096)).astype(dtype)}, path)

        def ours() -> None:
            file = SafetensorsFile(path)
            for start in range(0, 4096, 512):
                file.block("w", 0, 4096, start, start + 512)

        def library() -> None:
            with safe_open(path, "np") as file:
                matrix = file.get_slice("w")
                for start in range(0, 4096, 512):
                    matrix[:, start : start + 512].astype(np.float32)

        return _best(ours), _best(library)


def _best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _tell(what: str, ours: float, other: float, enough: float = ENOUGH) -> None:
    verdict = "stays" if other / ours >= enough else "goes"
    print(f"{what}: {ours:.3f} s against {other:.3f} s, {other / ours:.2f} times ({verdict})", flush=True)


if __name__ == "__main__":
    main()
