"""One command that measures on a GPU what the workbench claims, the most valuable first, in the minutes there are.

    python -m benchmarks.gpu [--minutes 9] [--only memory,tuner,spectra,race] [--size full|toy] [--device cuda] --out FOLDER
    python -m benchmarks.gpu --tables --out FOLDER

Needs no network and no model hub: weights are random and made on the card (Llama shapes of 0.5B, 3B and 8B); the race runs where
MiniLM and the task's text are at hand. Stops in time; the same command again goes on where it stopped, and measurements that are
there are not repeated. FOLDER holds plain JSON, a file a measurement, and machine.json with card, driver and versions. `--tables`
prints them beside the estimates of the same settings, and says which tables are still empty. Without a card, `--size toy --device
cpu` runs everything at toy size: it shows that the harness works, and measures no GPU memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu import machine
from benchmarks.gpu.items import ROOMS, SIZES, items
from benchmarks.gpu.tables import print_tables
from benchmarks.gpu.worker import RUNNING, record, result_file, write

LEAVE = 5.0  # seconds before the end at which nothing new is started


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the results are, and go")
    parser.add_argument("--minutes", type=float, default=9.0, help="when to stop")
    parser.add_argument("--only", default="", help=f"some of {', '.join(ROOMS)}, comma-separated")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tables", action="store_true", help="measure nothing, print what is there")
    given = parser.parse_args()
    only = tuple(part.strip() for part in given.only.split(",") if part.strip())
    if unknown := sorted(set(only) - set(ROOMS)):
        parser.error(f"there is no room {unknown[0]!r}; there are {', '.join(ROOMS)}")
    if not given.tables and (problem := _measure(given, only)):
        print(problem, file=sys.stderr)
        return 2
    return print_tables(given.out, given.size)


def _measure(given: argparse.Namespace, only: tuple[str, ...]) -> str | None:
    """Runs workers until all is measured or the time is up; what is wrong in a sentence when nothing can be."""
    import torch

    if given.device.startswith("cuda") and not torch.cuda.is_available():
        return "PyTorch sees no CUDA device here; --size toy --device cpu tries the harness without one."
    deadline = time.time() + 60 * given.minutes - LEAVE
    given.out.mkdir(parents=True, exist_ok=True)
    here = machine.describe(given.device)
    file = given.out / "machine.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        for what in ("card", "processor", "versions", "device"):
            if before.get(what) != here.get(what):
                return f"{given.out} holds measurements of another machine ({what} differs); choose another folder."
    write(file, here)
    command = [sys.executable, "-m", "benchmarks.gpu.worker", str(given.out), "--size", given.size, "--device", given.device]
    command += ["--only", ",".join(only)]
    while True:
        worker = subprocess.Popen([*command, "--deadline", str(deadline)])
        try:
            code = worker.wait(timeout=max(1.0, deadline + LEAVE - time.time()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            (given.out / RUNNING).unlink(missing_ok=True)  # not its fault: there was no time left
            return None
        except KeyboardInterrupt:
            worker.kill()
            worker.wait()
            (given.out / RUNNING).unlink(missing_ok=True)
            return None
        if code == 0:
            return None
        if not _note_death(given.out, given.size, code):
            return f"The measuring process ended with code {code} before it measured anything; its message stands above."


def _note_death(folder: Path, size: str, code: int) -> bool:
    """Records which measurement a worker died of, so that the next one leaves it out; False when it was none."""
    running = folder / RUNNING
    if not running.exists():
        return False
    name = json.loads(running.read_text(encoding="utf-8"))["id"]
    running.unlink()
    item = next(item for item in items(size) if item.id == name)
    if not result_file(folder, item).exists():
        record(folder, item, {"failed": f"the process died with code {code}"})
    return True


if __name__ == "__main__":
    sys.exit(main())
