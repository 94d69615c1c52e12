"""Which rank, and which learning rate with it? Short races over ranks and rates, in rounds that halve the rates.

Every rank stays in to the end, because the curve of score over rank is the answer; rates are halved within each rank (successive
halving: Jamieson & Talwalkar, AISTATS 2016): a first round trains all of them for a quarter of the steps, the next the better half for
half of them, the last the best one in full, on several seeds, beside the head alone. Rates and the best rank are chosen on the
validation split; what is reported is of the test split, paired by seed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers.checks import positive, whole
from analyzers.compare.runs import RunFolder
from analyzers.compare.settings import SweepSettings
from analyzers.compare.statistics import t_interval
from analyzers.compare.sweep import run_sweep
from analyzers.compare.tasks import CAUSAL, lower_is_better, open_task
from analyzers.methods import METHODS
from analyzers.plans import Budget
from loraxs_core.documents import read_object
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.names import short_name
from loraxs_core.paths import atomic_file, data_dir
from loraxs_core.progress import Cancelled, Progress, ProgressCallback
from loraxs_core.targets import select_targets
from sample_models import open_model

if TYPE_CHECKING:
    import pandas as pd

RATE_FACTORS = (0.5, 1.0, 2.0, 4.0)  # of the method's own rate: what is tried unless rates are named
METHOD, HEAD = "lora-xs", "head-only"
ROUNDS = (4, 2)  # a quarter of the steps, then half of them, each for the rates that are still in
ANSWER = "advice.json"  # in the folder of the races


@dataclass(frozen=True, kw_only=True)
class AdviceSettings:
    """model, task, data, columns, targets, batch, sequence, validation_examples, test_examples, threads: as in `SweepSettings`. ranks:
    tried, the same in every layer. rates: tried with each; around the method's own for this kind of task when left out. steps, seeds: of
    the last round.

    Raises SettingsError for fewer than two ranks or seeds, and values that no trial can have.
    """

    model: str
    task: str = "stsb"
    ranks: Sequence[int] = (4, 8, 16, 32)
    rates: Sequence[float] | None = None
    steps: int = 200
    seeds: int = 3
    batch: int = 32
    sequence: int = 128
    targets: str | Sequence[str] = "paper"
    validation_examples: int | None = 512
    test_examples: int | None = None
    threads: int | None = None
    data: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ranks = tuple(sorted({whole(rank, "A rank") for rank in self.ranks}))
        asked = self._usual_rates() if self.rates is None else self.rates
        rates = tuple(sorted({positive(rate, "A learning rate") for rate in asked}))
        if len(ranks) < 2:
            raise SettingsError("Name at least two ranks; advice is a comparison.")
        if not rates:
            raise SettingsError("Name at least one learning rate.")
        if whole(self.seeds, "The number of seeds") < 2:
            raise SettingsError("Advice needs at least 2 seeds: with one, nothing is known of the noise.")
        if whole(self.steps, "The number of steps") < 8:
            raise SettingsError("Advice needs at least 8 steps, as the first round trains for a quarter of them.")
        object.__setattr__(self, "ranks", ranks)
        object.__setattr__(self, "rates", rates)

    def _usual_rates(self) -> tuple[float, ...]:
        causal = open_task(self.task, dict(self.columns)).kind == CAUSAL
        return tuple(factor * METHODS[METHOD].rate(causal).value for factor in RATE_FACTORS)

    @property
    def folder(self) -> Path:
        """Where its races are kept unless another folder is named: the same for the same settings."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]
        plain = "".join(letter if letter.isalnum() else "-" for letter in f"{Path(self.model).name}-{Path(self.task).name}")
        return data_dir("advice", short_name(f"{plain}-{digest}"))

    def planned(self) -> list[SweepSettings]:
        """All sweeps of the races, with the rates that would be in if the smallest always were the best: what they cost, not what they are."""
        sweeps = [self.sweep(methods=(HEAD,), seeds=self.seeds, steps=self.steps)]
        for rank in self.ranks:
            rates = tuple(self.rates or ())
            for part in ROUNDS:
                if len(rates) > 1:
                    sweeps.append(self._round(rank, part, rates))
                    rates = rates[: _kept(len(rates))]
            sweeps.append(self._last(rank, rates))
        return sweeps

    def _round(self, rank: int, part: int, rates: Sequence[float]) -> SweepSettings:
        steps = max(1, self.steps // part)
        return self.sweep(methods=(METHOD,), rank=rank, seeds=1, steps=steps, learning_rates={METHOD: rates})

    def _last(self, rank: int, rates: Sequence[float]) -> SweepSettings:
        return self.sweep(methods=(METHOD,), rank=rank, seeds=self.seeds, steps=self.steps, learning_rates={METHOD: rates})

    def sweep(self, **changes: Any) -> SweepSettings:
        """A sweep of one round."""
        taken = ("batch", "sequence", "targets", "validation_examples", "test_examples", "threads", "data", "columns")
        common = {name: getattr(self, name) for name in taken} | {"evaluations": 1}
        return SweepSettings(self.model, self.task, **(common | changes))


@dataclass(frozen=True)
class Point:
    """One rank of the curve. score, low, high: test metric over seeds with its 95 % t interval. behind: how far it is behind the best
    rank, seed by seed, with its interval (0 for the best itself). validation: mean on the validation split, which chose."""

    rank: int
    rate: float
    trained: int
    score: float
    low: float
    high: float
    validation: float
    behind: float
    behind_low: float
    behind_high: float


@dataclass(frozen=True)
class RankAdvice:
    """points: by rank. best: the rank with the best mean validation score. smallest: the smallest rank that is within the noise of it:
    the 95 % interval of how far it is behind reaches 0, or it is ahead. head: test scores of the head alone, by mean and interval. gain:
    how much better than the head alone the best rank is, seed by seed, with its 95 % interval."""

    settings: AdviceSettings
    metric: str
    points: tuple[Point, ...]
    best: int
    smallest: int
    head: tuple[float, float, float]
    gain: tuple[float, float, float]
    trials: int
    folder: str

    @property
    def sentence(self) -> str:
        """The answer in plain words."""
        small = next(point for point in self.points if point.rank == self.smallest)
        top = next(point for point in self.points if point.rank == self.best)
        if not self.adapts:
            return (
                f"No rank clearly beats training the head alone ({self.metric} {self.head[0]:.3f}) in {self.settings.steps} steps and "
                f"{self.settings.seeds} seeds: train longer, try larger rates, or leave the adapter out."
            )
        edge = self._at_the_edge(small)
        if self.smallest == self.best:
            return (
                f"Take rank {self.best} at learning rate {small.rate:g}: {self.metric} {small.score:.3f} ({small.low:.3f} to "
                f"{small.high:.3f}); every smaller rank tried is clearly behind.{edge}"
            )
        return (
            f"Take rank {self.smallest} at learning rate {small.rate:g}: {self.metric} {small.score:.3f} ({small.low:.3f} to "
            f"{small.high:.3f}), within the noise of the best, rank {self.best} at {top.rate:g} ({top.score:.3f}), with "
            f"{top.trained / small.trained:.0f} times fewer trained numbers (behind by {small.behind:.3f}, 95 % interval "
            f"{small.behind_low:.3f} to {small.behind_high:.3f}).{edge}"
        )

    @property
    def adapts(self) -> bool:
        """Whether the best rank clearly beats the head alone on the same seeds."""
        return self.gain[1] > 0

    @property
    def _rates(self) -> Sequence[float]:
        return self.settings.rates or ()

    def _at_the_edge(self, small: Point) -> str:
        """A warning where the chosen rate is the last one tried on a side: a better one may lie beyond."""
        if len(self._rates) < 2 or small.rate not in (self._rates[0], self._rates[-1]):
            return ""
        side = "smallest" if small.rate == self._rates[0] else "largest"
        return f" That rate is the {side} that was tried; try {'smaller' if side == 'smallest' else 'larger'} ones too."

    def frame(self) -> pd.DataFrame:
        """One row a rank: the fields of `Point`."""
        import pandas as pd

        return pd.DataFrame([asdict(point) for point in self.points])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"sentence": self.sentence, "points": [asdict(point) for point in self.points]}

    def save(self) -> Path:
        """Writes it into the folder of its races."""
        path = Path(self.folder) / ANSWER
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike) -> RankAdvice:
        """What `save` wrote into `folder`. Raises RunError in one sentence where there is none, or something else."""
        path = Path(folder) / ANSWER
        try:
            known = read_object(path)
            points = tuple(Point(**point) for point in known["points"])
            told = {name: known[name] for name in ("metric", "best", "smallest", "trials", "folder")}
            return cls(
                AdviceSettings(**known["settings"]), points=points, head=tuple(known["head"]), gain=tuple(known["gain"]), **told
            )
        except FileNotFoundError:
            raise RunError(f"There is no advice in {folder}.") from None
        except (KeyError, TypeError, ValueError, SettingsError) as error:
            raise RunError(f"{path} holds no advice of this program ({error}); remove it and race again.") from None


def advise_rank(
    settings: AdviceSettings,
    out: str | os.PathLike | None = None,
    progress: ProgressCallback | None = None,
    *,
    cancelled: Cancelled = lambda: False,
) -> RankAdvice:
    """Runs the races (those already in `out` are kept) and reads the answer from them.

    Raises what `run_sweep` raises, PlanError for a rank larger than a matrix before anything is trained, and SettingsError where a rank
    has no finished trial on every seed.
    """
    Budget.like_rank(settings.ranks[-1]).numbers(select_targets(open_model(settings.model), settings.targets))
    root = Path(out) if out else settings.folder
    trials = 0

    done, total, began = 0, sum(_size(sweep) for sweep in settings.planned()), time.monotonic()

    def race(sweep: SweepSettings, name: str) -> pd.DataFrame:
        nonlocal trials, done

        def told(own: Progress) -> None:
            if progress is not None:
                progress(Progress(done + own.fraction * _size(sweep), total, f"{name}: {own.message}", began))

        run: RunFolder = run_sweep(sweep, root / name, told, cancelled=cancelled)
        results = run.results()
        trials, done = trials + len(results), done + _size(sweep)
        return results

    head = race(settings.sweep(methods=(HEAD,), seeds=settings.seeds, steps=settings.steps), "head")
    finals = {}
    for rank in settings.ranks:
        rates = tuple(settings.rates or ())
        for part in ROUNDS:
            if len(rates) > 1:
                sweep = settings._round(rank, part, rates)
                rates = _better_half(race(sweep, f"r{rank}-{sweep.steps}steps"), rates)
        finals[rank] = race(settings._last(rank, rates), f"r{rank}")
    found = _read(settings, finals, head, trials, root)
    found.save()
    return found


def _size(sweep: SweepSettings) -> int:
    """Steps of all its trials."""
    return len(sweep.trials()) * sweep.steps


def _kept(count: int) -> int:
    """How many of `count` rates stay in: half, rounded up, but one of two."""
    return max(1, -(-count // 2) if count > 2 else 1)


def _better_half(tried: pd.DataFrame, rates: Sequence[float]) -> tuple[float, ...]:
    """The rates with the better validation scores (`_kept` of them); those that failed go first."""
    scores = dict.fromkeys(rates, -np.inf)
    for row in tried.to_dict("records"):
        value = row.get("validation_score")
        if row["state"] == "done" and value is not None and np.isfinite(value):
            scores[row["learning_rate"]] = float(value)
    ordered = sorted(rates, key=lambda rate: (-scores[rate], rate))
    return tuple(sorted(ordered[: _kept(len(rates))]))


def _read(settings: AdviceSettings, finals: dict[int, pd.DataFrame], head: pd.DataFrame, trials: int, root: Path) -> RankAdvice:
    scores, validation, rates, trained = {}, {}, {}, {}
    metric = ""
    for rank, results in finals.items():
        done = (
            results[results["state"] == "done"].dropna(subset=["score", "validation_score"])
            if "score" in results
            else results[:0]
        )
        by_rate = {rate: part for rate, part in done.groupby("learning_rate") if len(part) == settings.seeds}
        if not by_rate:
            raise SettingsError(
                f"Rank {rank} has no learning rate that finished on all {settings.seeds} seeds; try smaller rates."
            )
        rate = max(by_rate, key=lambda one: by_rate[one]["validation_score"].mean())
        part = by_rate[rate].sort_values("seed")
        scores[rank], rates[rank] = part["score"].to_numpy(float), float(rate)
        validation[rank] = float(part["validation_score"].mean())
        trained[rank], metric = int(part["adapter_parameters"].iloc[0]), str(part["metric"].iloc[0])
    best = max(scores, key=lambda rank: (validation[rank], -rank))
    points, sign = [], -1.0 if lower_is_better(metric) else 1.0
    for rank, values in scores.items():
        behind = (0.0, 0.0, 0.0) if rank == best else t_interval(sign * (scores[best] - values))
        points.append(Point(rank, rates[rank], trained[rank], *t_interval(values), validation[rank], *behind))
    smallest = min(point.rank for point in points if point.behind_low <= 0)
    alone = head.dropna(subset=["score"]).sort_values("seed")["score"].to_numpy(float)
    if len(alone) != settings.seeds:
        raise SettingsError(f"The head alone did not finish on all {settings.seeds} seeds; look at {Path(root) / 'head'}.")
    gain = t_interval(sign * (scores[best] - alone))
    return RankAdvice(settings, metric, tuple(points), best, smallest, t_interval(alone), gain, trials, str(root))
