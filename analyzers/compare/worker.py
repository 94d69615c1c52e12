"""The process of a detached run: ``python -m analyzers.compare.worker RUN_FOLDER``."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read when the tokenizers are imported

from analyzers.compare.runs import RunFolder
from analyzers.compare.sweep import run_sweep
from loraxs_core.background import process_main

if __name__ == "__main__":
    sys.exit(process_main(lambda: run_sweep(RunFolder(sys.argv[1]))))
