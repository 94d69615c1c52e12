"""The process of pieces of a sweep: ``python -m analyzers.compare.piece RUN PIECE PARENT``, see `apart`.

With ``-`` for PIECE it does those that its standard input names, a line each, until that is closed. PARENT is the `identity` of the
sweep's process, with which this one ends.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read when the tokenizers are imported

from loraxs_core.processes import end_with

if __name__ == "__main__":
    run, piece, parent = sys.argv[1:]
    end_with(json.loads(parent))
    from analyzers.compare.apart import do  # takes long on a busy machine

    for name in (line.strip() for line in sys.stdin) if piece == "-" else (piece,):
        do(run, name)
