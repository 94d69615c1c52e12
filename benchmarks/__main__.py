"""`make bench`: every benchmark in turn, each in a process of its own; `python -m benchmarks NAME …` runs some of them.

    python -m benchmarks [--list] [NAME …]

Without names, those that take minutes run; the ones that train many models (`LONG`) want to be named.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import subprocess
import sys

import benchmarks

# Not measurements, or they want a card or a folder:
TOOLS = {"drawing", "gpu", "kept_trials", "make_checkpoint", "peft_suite", "tiny_models"}
LONG = {"architectures", "compare_learning_rates", "page_load", "planner", "results"}  # half an hour to hours


def main() -> int:
    names = [found.name for found in pkgutil.iter_modules(benchmarks.__path__) if found.name not in TOOLS | {"__main__"}]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Runs the benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all that take minutes when left out")
    parser.add_argument("--list", action="store_true", help="say what there is and stop")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.names) - set(names)):
        parser.error(f"there is no benchmark {unknown[0]}; there are {', '.join(names)}")
    if asked.list:
        for name in names:
            headline = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip().partition("\n")[0]
            print(f"{name}{' (long)' if name in LONG else ''}: {headline}")
        return 0
    failed = []
    for name in asked.names or [name for name in names if name not in LONG]:
        print(f"\n=== {name} ===", flush=True)
        if subprocess.call([sys.executable, "-m", f"benchmarks.{name}"]):
            failed.append(name)
    if failed:
        print(f"\nFailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
