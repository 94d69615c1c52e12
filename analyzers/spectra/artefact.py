"""What a scan gives: the spectra of all layers, as a table, and as a folder to keep them in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from analyzers.spectra.layer import LayerSpectrum
from analyzers.spectra.metrics import METRICS
from loraxs_core.errors import CheckpointError, NonFiniteWeights
from loraxs_core.html import table
from loraxs_core.paths import atomic_folder
from loraxs_core.safetensors_file import SafetensorsFile
from loraxs_core.spectrum_kernels import TOLERANCE

if TYPE_CHECKING:
    import pandas as pd

VALUES_FILE = "singular_values.safetensors"
TABLE_FILE = "spectra.json"
SHOWN = ("sigma_max", "stable_rank", "effective_rank", "rank_90")  # in a notebook


class Plan(Protocol):
    """Anything that says which rank each module gets."""

    @property
    def ranks(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Spectra:
    """The spectra of a model's layers, in the model's order.

    model: its name. layers: module name -> LayerSpectrum. seconds: how long the scan took. from_cache: whether nothing had
    to be computed. not_finite: layers that hold NaN or infinities and so have no spectrum, name -> one sentence.
    """

    model: str
    layers: Mapping[str, LayerSpectrum]
    seconds: float = 0.0
    from_cache: bool = False
    not_finite: Mapping[str, str] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Bound on the error of every singular value, relative to the largest of its layer."""
        return max((layer.error for layer in self.layers.values()), default=0.0)

    @property
    def exact(self) -> bool:
        """Whether every value keeps the promise of a scan that was not told to be fast."""
        return self.error <= 1.01 * TOLERANCE

    def __getitem__(self, name: str) -> LayerSpectrum:
        """The spectrum of the module called `name`. Raises CheckpointError when it was not scanned, NonFiniteWeights when it has none."""
        if name in self.not_finite:
            raise NonFiniteWeights(self.not_finite[name])
        try:
            return self.layers[name]
        except KeyError:
            raise CheckpointError(f"{self.model} has no scanned layer named {name!r}.") from None

    def _repr_html_(self) -> str:
        rows = (
            (name, f"{layer.weight.shape[0]} x {layer.weight.shape[1]}", *(layer.metrics[metric] for metric in SHOWN))
            for name, layer in self.layers.items()
        )
        bad = f"; NaN or infinite numbers in {len(self.not_finite)} more" if self.not_finite else ""
        return table(
            f"{self.model}: spectra of {len(self.layers)} weights, within {self.error:.0e} σ1{bad}",
            ["weight", "out x in", *(METRICS[metric].label for metric in SHOWN)],
            rows,
            total=len(self.layers),
        )

    def energy_at(self, name: str, rank: int) -> float:
        """Fraction of ‖W0‖²_F inside `rank` of the module called `name`; NaN for one not scanned, or not that far."""
        return self.layers[name].energy_at(rank) if name in self.layers else math.nan

    def frame(self, plan: Plan | None = None) -> pd.DataFrame:
        """One row a layer that has a spectrum: name, role, layer, shape ("384x1536"), out, in, dtype, parameters, then every metric.

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
                "not_finite": dict(self.not_finite),
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
            return cls(table["model"], layers, table["seconds"], not_finite=dict(table.get("not_finite", {})))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{folder} does not hold saved spectra; run `loraxs scan` and save them again.") from error
