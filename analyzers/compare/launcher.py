"""``accelerate launch`` that ends with the sweep it works for: ``python -m analyzers.compare.launcher PARENT OPTIONS``, see `executors`."""

from __future__ import annotations

import json
import sys

from loraxs_core.processes import end_with

if __name__ == "__main__":
    end_with(json.loads(sys.argv.pop(1)))
    from accelerate.commands.launch import main  # takes long on a busy machine

    main()
