"""Spectra on disk in the user's cache folder, one small file a layer, so that a scan killed at any point resumes there.

A layer's file is found by the checkpoint's fingerprint (every file's name, length, modification time and tensor table) and by
the weight's name: a changed checkpoint has another fingerprint and misses.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from analyzers.spectra.artefact import LayerSpectrum
from loraxs_core.checkpoint import Checkpoint, Weight
from loraxs_core.errors import WorkbenchError
from loraxs_core.paths import atomic_file, cache_dir
from loraxs_core.safetensors_file import SafetensorsFile

FORMAT = 1  # raised when the files or the accuracy of what they hold change


class SpectraCache:
    """The cached spectra of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint):
        key = hashlib.sha256(f"{FORMAT} {checkpoint.fingerprint}".encode()).hexdigest()
        self.folder = cache_dir("spectra", key[:32])

    def path(self, weight: Weight) -> Path:
        """The file of one weight's spectrum."""
        return self.folder / f"{hashlib.sha256(weight.name.encode()).hexdigest()[:32]}.safetensors"

    def load(self, weight: Weight) -> LayerSpectrum | None:
        """The cached spectrum of `weight`; None when there is none, or its file is damaged."""
        path = self.path(weight)
        if not path.is_file():
            return None
        try:
            file = SafetensorsFile(path)
            layer = LayerSpectrum.from_record(json.loads(file.metadata["record"]), file.read("singular_values"))
        except (WorkbenchError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return layer if layer.weight.name == weight.name and layer.weight.shape == weight.shape else None

    def store(self, layer: LayerSpectrum) -> None:
        """Writes one layer's spectrum, whole or not at all. Raises RunError when the disk is full."""
        from safetensors.numpy import save_file

        with atomic_file(self.path(layer.weight)) as path:
            save_file({"singular_values": layer.singular_values}, path, metadata={"record": json.dumps(layer.record())})
