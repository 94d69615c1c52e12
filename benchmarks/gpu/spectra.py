"""Singular values of one layer's matrices on the card, beside the CPU path of the same machine and ``torch.linalg.svdvals``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from analyzers.spectra import scan
from benchmarks.gpu.models import SHAPES, Workshop, empty
from benchmarks.make_checkpoint import make
from loraxs_core.checkpoint import Checkpoint


def measure(workshop: Workshop, *, shape: str) -> dict:
    """Seconds and peak bytes of each way over one layer of that width, and the largest difference to the CPU path, over sigma_1."""
    workshop.clear()
    device = workshop.device
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint.open(make(Path(folder) / "layer", 1, SHAPES[shape]["hidden_size"]))
        exact, seconds = _scanned(checkpoint, "cpu", fast=False)
        found = {"cpu": {"seconds": seconds}}
        for name, fast in (("device", False), ("device, fast", True)):
            empty(device)
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            values, seconds = _scanned(checkpoint, device, fast=fast)
            found[name] = {"seconds": seconds, "error": _worst(values, exact), "peak": _peak(device)}
        empty(device)
        values, begun = {}, time.perf_counter()
        for weight in checkpoint.weights:
            if weight.name in exact:
                matrix = torch.from_numpy(np.array(checkpoint.read(weight), dtype=np.float32)).to(device)
                values[weight.name] = torch.linalg.svdvals(matrix).double().cpu().numpy()
        found["torch.linalg.svdvals"] = {"seconds": time.perf_counter() - begun, "error": _worst(values, exact)}
    return {"matrices": len(exact), "ways": found}


def _scanned(checkpoint, device: str, *, fast: bool) -> tuple[dict[str, np.ndarray], float]:
    begun = time.perf_counter()
    spectra = scan(checkpoint, device=device, fast=fast, cache=False)
    return {name: layer.singular_values for name, layer in spectra.layers.items()}, time.perf_counter() - begun


def _worst(values: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> float:
    return float(max(np.abs(values[name] - exact[name]).max() / exact[name][0] for name in exact))


def _peak(device: str) -> int | None:
    return None if device == "cpu" else torch.cuda.max_memory_allocated()
