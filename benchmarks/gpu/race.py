"""A short real race on the card: every method on MiniLM, where its weights and the task's text are at hand."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from analyzers.compare import SweepSettings, run_sweep
from analyzers.methods import METHODS
from benchmarks.gpu.models import Workshop
from loraxs_core.errors import WorkbenchError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "glue"


def measure(workshop: Workshop, *, task: str, seeds: int) -> dict:
    """The table of `loraxs compare minilm --task TASK`, and its seconds; what is missing where it cannot run."""
    workshop.clear()
    toy = workshop.device == "cpu"
    settings = SweepSettings(
        "minilm",
        task,
        ("lora-xs",) if toy else tuple(METHODS),
        seeds=seeds,
        steps=2 if toy else 200,
        batch=4 if toy else 32,
        sequence=16 if toy else 128,
        test_examples=8 if toy else None,
        validation_examples=8 if toy else None,
        data=str(DATA / task) if (DATA / task).is_dir() else None,
    )
    begun = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            finished = run_sweep(settings, Path(folder) / "run")
            rows = finished.summary().to_dict("records")
            failures = finished.failures()
    except WorkbenchError as error:
        return {"skipped": str(error)}
    return {"seconds": time.perf_counter() - begun, "rows": rows, "failures": failures}
