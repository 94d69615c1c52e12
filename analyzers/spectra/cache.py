"""Spectra in the user's cache, one entry a layer, so that a scan killed at any point resumes there.

A layer's entry is found by the checkpoint's fingerprint (see `Checkpoint.fingerprint`), the weight's name and the accuracy: a
changed checkpoint has another fingerprint and misses. How entries are kept, and when they are believed: `loraxs_core.cache`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from analyzers.spectra.accuracy import Accuracy
from analyzers.spectra.layer import LayerSpectrum, NotFinite, weight_of
from loraxs_core.cache import Kept
from loraxs_core.checkpoint import Checkpoint, Weight

_CACHE = Kept("spectra", ("loraxs_core", "analyzers"))


class SpectraCache:
    """The cached spectra of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint

    def load(self, weight: Weight, accuracy: Accuracy) -> LayerSpectrum | NotFinite | None:
        """The cached spectrum of `weight`, of this accuracy or better; None when there is none that can be believed."""

        def decode(record: dict, arrays: dict[str, np.ndarray]) -> LayerSpectrum | NotFinite | None:
            layer: LayerSpectrum | NotFinite
            if "not_finite" in record:
                layer = NotFinite(weight_of(record), record["not_finite"])
            else:
                layer = LayerSpectrum.from_record(record, arrays["singular_values"])
            return layer if layer.weight.shape == weight.shape else None

        for candidate in accuracy.satisfied_by:
            layer = _CACHE.load(self._key(weight, candidate), decode)
            if layer is not None:
                # Which role a name has is for today's rules to say, not for those of the version that wrote the file.
                layer = dataclasses.replace(layer, weight=weight)
                return layer if isinstance(layer, NotFinite) else layer.largest(accuracy.top)
        return None

    def store(self, layer: LayerSpectrum | NotFinite, accuracy: Accuracy) -> None:
        """Keeps one layer's spectrum, whole or not at all; a disk that cannot be written is no error."""
        arrays: dict[str, np.ndarray] = {}
        if isinstance(layer, NotFinite):
            record = {"weight": dataclasses.asdict(layer.weight), "not_finite": layer.reason}
        else:
            arrays, record = {"singular_values": layer.singular_values}, layer.record()
        key, what = self._key(layer.weight, accuracy), f"{layer.weight.name}, {accuracy.key}"
        _CACHE.save(key, meta=record, arrays=arrays, model=self.checkpoint.name, what=what)

    def _key(self, weight: Weight, accuracy: Accuracy) -> str:
        return _CACHE.key(self.checkpoint.fingerprint, weight.name, accuracy.key)
