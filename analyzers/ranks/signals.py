"""What a task says about ranks: measured curves of gain over rank, a layer each, with the same from two halves of the data.

SVD bases are nested: rank r trains exactly the top-left r x r block of R, so one backward pass at R = 0 with a large R says for every
r at once what it is worth. Every signal is such a curve: `whole[k]` is what rank k + 1 is worth in the layer, `first` and `second`
are the same from independent halves of the calibration data; where those disagree, the signal is noise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from loraxs_core.errors import PlanError
from loraxs_core.paths import atomic_file

FORMAT, VERSION = "loraxs-rank-signals", 1
KINDS = ("gradient", "adam", "fisher", "activation", "warm-up")


@dataclass(frozen=True)
class Curve:
    """Worth of ranks 1, 2, … in one layer, by all calibration data and by its two halves. Three (ranks,) float64 arrays."""

    whole: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, whole: np.ndarray, first: np.ndarray, second: np.ndarray) -> Curve:
        """Curves made never to fall: a rank more can always be left unused."""
        rising = (np.maximum.accumulate(np.maximum(np.asarray(one, np.float64), 0.0)) for one in (whole, first, second))
        return cls(*rising)


@dataclass(frozen=True)
class Signals:
    """model, task: what was measured on what. batches: calibration batches read. curves: kind -> layer name -> `Curve`."""

    model: str
    task: str
    batches: int
    curves: Mapping[str, Mapping[str, Curve]]

    def curve(self, kind: str, layer: str) -> Curve:
        """Raises PlanError where it was not measured."""
        try:
            return self.curves[kind][layer]
        except KeyError:
            raise PlanError(
                f"The signals of {self.model} on {self.task} hold no {kind!r} of {layer}; measure them for these targets (`loraxs measure`)."
            ) from None

    def save(self, path: str | os.PathLike) -> Path:
        """Writes JSON, whole or not at all. Raises RunError when it cannot be written."""
        path = Path(path)
        curves = {
            kind: {name: {part: values.tolist() for part, values in vars(curve).items()} for name, curve in layers.items()}
            for kind, layers in self.curves.items()
        }
        document = {"format": FORMAT, "version": VERSION, **asdict(self), "curves": curves}
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Signals:
        """Reads what `save` wrote. Raises PlanError in one sentence for anything else."""
        try:
            document = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise PlanError(f"Cannot read the signals {path}: {error.strerror or error}.") from None
        except (ValueError, RecursionError):
            raise PlanError(f"{path} is not valid JSON, so it holds no signals; measure them again.") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
            raise PlanError(
                f"{path} holds no signals of this program (format {FORMAT!r}, version {VERSION}); measure them again."
            )
        try:
            curves = {
                str(kind): {
                    str(name): Curve(*(np.array(parts[part], dtype=np.float64) for part in ("whole", "first", "second")))
                    for name, parts in layers.items()
                }
                for kind, layers in document["curves"].items()
            }
            found = cls(str(document["model"]), str(document["task"]), int(document["batches"]), curves)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise PlanError(f"{path} holds a value of the wrong kind ({error}); measure the signals again.") from None
        every = [part for layers in curves.values() for curve in layers.values() for part in vars(curve).values()]
        if any(part.ndim != 1 or not len(part) or not np.isfinite(part).all() for part in every):
            raise PlanError(f"{path} holds a curve that is no list of finite numbers; measure the signals again.")
        return found
