"""Runs measurements one after the other until the deadline; each leaves a file, so that nothing is lost when the next one dies.

python -m benchmarks.gpu.worker FOLDER --size full --device cuda --deadline UNIX_SECONDS [--only memory,tuner]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

from benchmarks.gpu.items import Item, items

RUNNING = "running.json"  # what is being measured: left over when the process died of it


def result_file(folder: Path, item: Item) -> Path:
    return folder / f"{item.id}.json"


def write(file: Path, content: dict) -> None:
    """Whole or not at all."""
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def record(folder: Path, item: Item, result: dict) -> None:
    write(result_file(folder, item), {"id": item.id, "room": item.room, "arguments": item.arguments, **result})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    only = tuple(part for part in given.only.split(",") if part)
    from benchmarks.gpu.models import Workshop

    warnings.simplefilter("ignore")  # libraries' advice, a line a measurement
    workshop = Workshop(given.device)
    for item in items(given.size, only):
        if result_file(given.folder, item).exists():
            continue
        if time.time() + item.seconds > given.deadline:
            continue  # a shorter one further down may still fit
        write(given.folder / RUNNING, {"id": item.id})
        print(f"{item.id} …", end=" ", file=sys.stderr, flush=True)
        begun = time.time()
        record(given.folder, item, _measured(workshop, item))
        (given.folder / RUNNING).unlink()
        print(f"{time.time() - begun:.1f} s", file=sys.stderr, flush=True)
    return 0


def _measured(workshop, item: Item) -> dict:
    """The result, or what stopped it: one measurement that fails is a finding, and the next one goes on."""
    from benchmarks.gpu.models import has_bitsandbytes

    if item.arguments.get("base") in ("4bit", "8bit") and not has_bitsandbytes():
        return {"skipped": "bitsandbytes is not installed"}
    try:
        found = importlib.import_module(f"benchmarks.gpu.{item.room}").measure(workshop, **item.arguments)
    except Exception as error:
        workshop.clear()
        if type(error).__name__ == "OutOfMemoryError":
            return {"out_of_memory": str(error).splitlines()[0]}
        return {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc().splitlines()[-6:]}
    return found if "skipped" in found else {"result": found}


if __name__ == "__main__":
    sys.exit(main())
