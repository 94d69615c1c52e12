"""What a scan gives: the singular values of every layer, the numbers read from them, and a folder to keep them in."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from analyzers.spectra.metrics import METRICS, VERSION, compute_metrics
from loraxs_core.checkpoint import Weight
from loraxs_core.errors import CheckpointError
from loraxs_core.paths import atomic_folder
from loraxs_core.safetensors_file import SafetensorsFile
from loraxs_core.spectrum_kernels import TOLERANCE

if TYPE_CHECKING:
    import pandas as pd

VALUES_FILE = "singular_values.safetensors"
TABLE_FILE = "spectra.json"


class Plan(Protocol):
    """Anything that says which rank each module gets."""

    ranks: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """The spectrum of one weight.

    weight: which one. singular_values: float64, descending; all min(out, in) of them, or the largest few. energy: the sum of
    all squared singular values in units of the largest one squared (which is the stable rank); 0 for the zero matrix.
    error: bound on the error of every singular value, relative to the largest. metrics: name -> number, see `METRICS`.
    """

    weight: Weight
    singular_values: np.ndarray
    energy: float
    error: float
    saved_metrics: Mapping[str, float] | None = field(default=None, repr=False)

    @property
    def full_rank(self) -> int:
        """How many singular values the matrix has."""
        return self.weight.full_rank

    @property
    def sides(self) -> tuple[int, int]:
        """(shorter, longer) side of the matrix."""
        return min(self.weight.shape), max(self.weight.shape)

    @property
    def complete(self) -> bool:
        """Whether every singular value is here, rather than the largest few."""
        return self.singular_values.size == self.full_rank

    @cached_property
    def scaled(self) -> np.ndarray:
        """The singular values divided by the largest; zeros for the zero matrix."""
        largest = self.singular_values[0]
        return self.singular_values / largest if largest else np.zeros_like(self.singular_values)

    @cached_property
    def cumulative_energy(self) -> np.ndarray:
        """Fraction of the squared Frobenius norm that the first k+1 directions hold, at index k; ones for the zero matrix."""
        if self.energy == 0:
            return np.ones(self.singular_values.size)
        return np.minimum(np.cumsum(np.square(self.scaled)) / self.energy, 1.0)

    @cached_property
    def metrics(self) -> Mapping[str, float]:
        """Every metric of `METRICS`; NaN where it is not defined for this layer."""
        return self.saved_metrics if self.saved_metrics is not None else compute_metrics(self)

    def largest(self, top: int | None) -> LayerSpectrum:
        """The same spectrum with the `top` largest values alone; itself when they are all asked for."""
        if top is None or top >= self.singular_values.size:
            return self
        return LayerSpectrum(self.weight, self.singular_values[:top].copy(), self.energy, self.error)

    def measured(self) -> LayerSpectrum:
        """Itself, once its metrics are computed: done where the work is spread, so that nobody waits for them later."""
        self.metrics  # noqa: B018
        return self

    def energy_at(self, rank: int) -> float:
        """Fraction of the squared Frobenius norm that the top `rank` directions hold; NaN beyond those that are known."""
        if rank <= 0:
            return 0.0
        if rank > self.singular_values.size:
            return 1.0 if self.complete else math.nan
        return float(self.cumulative_energy[rank - 1])

    def gain_over_random(self, rank: int) -> float:
        """How many times more energy the top `rank` directions hold than as many random input directions would.

        A random r-dimensional subspace of the inputs holds r / in of the energy on average (Halko, Martinsson & Tropp, SIAM
        Review 2011), so this is what an SVD initialisation gains over a random one. NaN for rank 0.
        """
        return self.energy_at(rank) * self.weight.shape[1] / rank if rank > 0 else math.nan

    def record(self) -> dict[str, Any]:
        """Everything but the singular values, for JSON."""
        return {
            "weight": dataclasses.asdict(self.weight),
            "energy": self.energy,
            "error": self.error,
            "metrics_version": VERSION,
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], singular_values: np.ndarray) -> LayerSpectrum:
        """The opposite of `record`. Metrics of another version are dropped, to be computed again when asked for."""
        known = {one.name for one in dataclasses.fields(Weight)}
        fields = {name: tuple(value) if name == "shape" else value for name, value in record["weight"].items() if name in known}
        metrics = None
        if record.get("metrics_version") == VERSION and record["metrics"].keys() == METRICS.keys():
            metrics = {name: math.nan if value is None else value for name, value in record["metrics"].items()}
        return cls(Weight(**fields), singular_values, record["energy"], record["error"], metrics)


@dataclass(frozen=True)
class Spectra:
    """The spectra of a model's layers, in the model's order.

    model: its name. layers: module name -> LayerSpectrum. seconds: how long the scan took. from_cache: whether nothing had
    to be computed.
    """

    model: str
    layers: Mapping[str, LayerSpectrum]
    seconds: float = 0.0
    from_cache: bool = False

    @property
    def error(self) -> float:
        """Bound on the error of every singular value, relative to the largest of its layer."""
        return max((layer.error for layer in self.layers.values()), default=0.0)

    @property
    def exact(self) -> bool:
        """Whether every value keeps the promise of a scan that was not told to be fast."""
        return self.error <= 1.01 * TOLERANCE

    def __getitem__(self, name: str) -> LayerSpectrum:
        """The spectrum of the module called `name`. Raises CheckpointError when it was not scanned."""
        try:
            return self.layers[name]
        except KeyError:
            raise CheckpointError(f"{self.model} has no scanned layer named {name!r}.") from None

    def frame(self, plan: Plan | None = None) -> pd.DataFrame:
        """One row a layer: name, role, layer, shape ("384x1536"), out, in, dtype, parameters, then every metric.

        With a plan also ``rank`` (0 for a module outside it), ``energy_at_rank``, the fraction of the squared Frobenius norm
        that the planned rank captures, and ``gain_over_random``, how many times more that is than random directions would.
        """
        import pandas as pd

        rows = []
        for name, layer in self.layers.items():
            weight = layer.weight
            row: dict[str, Any] = {
                "name": name,
                "role": weight.role,
                "layer": weight.layer,
                "shape": f"{weight.shape[0]}x{weight.shape[1]}",
                "out": weight.shape[0],
                "in": weight.shape[1],
                "dtype": weight.dtype,
                "parameters": weight.shape[0] * weight.shape[1],
                **layer.metrics,
            }
            if plan is not None:
                row["rank"] = int(plan.ranks.get(name, 0))
                row["energy_at_rank"] = layer.energy_at(row["rank"])
                row["gain_over_random"] = layer.gain_over_random(row["rank"])
            rows.append(row)
        frame = pd.DataFrame(rows)
        whole = [name for name, metric in METRICS.items() if metric.whole and not frame[name].isna().any()]
        return frame.astype({"layer": "Int64"} | dict.fromkeys(whole, "int64"))

    def save(self, folder: str | Path) -> Path:
        """Writes `singular_values.safetensors` (module name -> float64 values) and `spectra.json` into a new folder.

        Raises RunError when the folder is not empty or cannot be written.
        """
        from safetensors.numpy import save_file

        with atomic_folder(folder) as partial:
            save_file({name: layer.singular_values for name, layer in self.layers.items()}, partial / VALUES_FILE)
            table = {
                "model": self.model,
                "seconds": self.seconds,
                "layers": {name: layer.record() for name, layer in self.layers.items()},
            }
            (partial / TABLE_FILE).write_text(json.dumps(table, indent=1), encoding="utf-8")
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Spectra:
        """What `save` wrote. Raises CheckpointError when the folder does not hold saved spectra."""
        folder = Path(folder)
        try:
            table = json.loads((folder / TABLE_FILE).read_text(encoding="utf-8"))
            values = SafetensorsFile(folder / VALUES_FILE)
            layers = {name: LayerSpectrum.from_record(record, values.read(name)) for name, record in table["layers"].items()}
            return cls(table["model"], layers, table["seconds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder} does not hold saved spectra; run `loraxs scan` and save them again.") from error
