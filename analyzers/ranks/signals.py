"""What a task says about ranks: measured curves of gain over rank, a layer each, with the same from two halves of the data.

SVD bases are nested: rank r trains exactly the top-left r x r block of R, so one backward pass at R = 0 with a large R says for every
r at once what it is worth. Every signal is such a curve: `whole[k]` is what rank k + 1 is worth in the layer, `first` and `second`
are the same from independent halves of the calibration data; where those disagree, the signal is noise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
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

    def agreement(self, kind: str, names: Sequence[str]) -> float:
        """How far the halves of the calibration data agree on which of the layers `names` matter: Spearman's correlation of their
        curves at half of the measured ranks; 0 where it is negative."""
        first, second = (
            [self._at_half(getattr(self.curve(kind, name), part)) for name in names] for part in ("first", "second")
        )
        if len(names) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
            return 0.0
        return max(0.0, float(np.corrcoef(_order(first), _order(second))[0, 1]))

    def importance(self, kind: str, names: Sequence[str]) -> dict[str, float]:
        """Each layer's curve at half of the measured ranks, over the geometric mean of all; 1 where nothing was found in any."""
        values = np.array([self._at_half(self.curve(kind, name).whole) for name in names])
        floor = 1e-3 * values.max(initial=0.0)
        if floor <= 0:
            return dict.fromkeys(names, 1.0)
        values = np.maximum(values, floor)  # what is indistinguishable from nothing
        return dict(zip(names, (values / np.exp(np.log(values).mean())).tolist(), strict=True))

    @staticmethod
    def _at_half(curve: np.ndarray) -> float:
        return float(curve[(len(curve) - 1) // 2])

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
            return cls.from_json(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise PlanError(f"Cannot read the signals {path}: {error.strerror or error}.") from None

    @classmethod
    def from_json(cls, data: bytes, path: str) -> Signals:
        """From the content of a file called `path`. Raises PlanError in one sentence for anything but what `save` wrote."""
        try:
            document = json.loads(data)
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


def _order(values: Sequence[float]) -> np.ndarray:
    """Ranks of `values` from 0 on; equals share the mean of theirs."""
    array = np.asarray(values)
    return np.array([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array])
