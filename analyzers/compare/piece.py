"""The process of one piece of a sweep: ``python -m analyzers.compare.piece RUN PIECE PARENT``, see `apart`."""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read when the tokenizers are imported

from analyzers.compare.apart import do

if __name__ == "__main__":
    do(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
