"""The singular values of every linear weight of a checkpoint, and what they say.

`scan` computes them one tensor at a time, with progress, cached on disk; `Spectra` holds them, turns into a data frame and
is saved as safetensors and JSON; `METRICS` lists every number per layer with its meaning and source.

    Checkpoint  ->  scan (an engine runs a Job of Tasks, a cache keeps each layer)  ->  Spectra  ->  frame, METRICS, plans, charts

>>> from analyzers.spectra import scan
>>> spectra = scan(checkpoint)  # doctest: +SKIP
>>> spectra.frame()  # doctest: +SKIP
"""

from analyzers.spectra.artefact import Spectra
from analyzers.spectra.layer import LayerSpectrum
from analyzers.spectra.metrics import METRICS, Metric
from analyzers.spectra.scan import cached, scan
from analyzers.spectra.settings import ScanSettings

__all__ = ["METRICS", "LayerSpectrum", "Metric", "ScanSettings", "Spectra", "cached", "scan"]
