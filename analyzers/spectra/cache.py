"""Spectra on disk in the user's cache folder, one small file a layer, so that a scan killed at any point resumes there.

A layer's file is found by the checkpoint's fingerprint (every file's name, length, modification time and tensor table), the
weight's name and the accuracy: a changed checkpoint has another fingerprint and misses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from analyzers.spectra.accuracy import Accuracy
from analyzers.spectra.layer import LayerSpectrum, NotFinite, weight_of
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

    def path(self, weight: Weight, accuracy: Accuracy) -> Path:
        """The file of one weight's spectrum."""
        return self.folder / f"{hashlib.sha256(weight.name.encode()).hexdigest()[:32]}.{accuracy.key}.safetensors"

    def load(self, weight: Weight, accuracy: Accuracy) -> LayerSpectrum | NotFinite | None:
        """The cached spectrum of `weight`, of this accuracy or better; None when there is none, or its file is damaged."""
        for candidate in accuracy.satisfied_by:
            layer = self._read(self.path(weight, candidate))
            if layer is not None and layer.weight.name == weight.name and layer.weight.shape == weight.shape:
                # Which role a name has is for today's rules to say, not for those of the version that wrote the file.
                layer = dataclasses.replace(layer, weight=weight)
                return layer if isinstance(layer, NotFinite) else layer.largest(accuracy.top)
        return None

    def store(self, layer: LayerSpectrum | NotFinite, accuracy: Accuracy) -> None:
        """Writes one layer's spectrum, whole or not at all. Raises RunError when the disk is full."""
        from safetensors.numpy import save_file

        if isinstance(layer, NotFinite):
            tensors, record = {}, {"weight": dataclasses.asdict(layer.weight), "not_finite": layer.reason}
        else:
            tensors, record = {"singular_values": layer.singular_values}, layer.record()
        with atomic_file(self.path(layer.weight, accuracy)) as path:
            save_file(tensors, path, metadata={"record": json.dumps(record)})

    @staticmethod
    def _read(path: Path) -> LayerSpectrum | NotFinite | None:
        if not path.is_file():
            return None
        try:
            file = SafetensorsFile(path)
            record = json.loads(file.metadata["record"])
            if "not_finite" in record:
                return NotFinite(weight_of(record), record["not_finite"])
            return LayerSpectrum.from_record(record, file.read("singular_values"))
        except (WorkbenchError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
