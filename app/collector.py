"""Python's collector of garbage, told of what will never be any.

Streamlit asks for a full collection after every run of the page. The collector then walks over all that torch, transformers, plotly
and the rest have defined, some 600,000 objects: nine tenths of a run's processor time, with every thread waiting, for modules that live
as long as the process. `gc.freeze` takes them out of its sight; what the page makes is collected after every run as before.
"""

from __future__ import annotations

import gc
import sys

_modules = 0  # that were loaded when the collector was last told


def spare_libraries() -> None:
    """Where modules were loaded since the last call: takes out of the collector's sight all that lives now, garbage cleared first."""
    global _modules
    if len(sys.modules) > _modules:
        gc.collect()
        gc.freeze()
        _modules = len(sys.modules)
