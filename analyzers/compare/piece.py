"""The process of pieces of a sweep: ``python -m analyzers.compare.piece RUN PIECE PARENT``, see `apart`.

With ``-`` for PIECE it does those that its standard input names, a line each, until that is closed.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read when the tokenizers are imported

from analyzers.compare.apart import do

if __name__ == "__main__":
    run, piece, parent = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    for name in (line.strip() for line in sys.stdin) if piece == "-" else (piece,):
        do(run, name, parent)
