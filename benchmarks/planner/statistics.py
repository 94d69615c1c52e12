"""What paired trials say: differences to uniform by seed, at equal rates and at each arm's own best rate, corrected for their number.

Two stages. *Exploration*: the first five seeds of every arm, each arm at the rate with the best mean validation score over them. A
*lead* is a plan whose uncorrected interval there lies above zero. *Confirmation*: leads alone, on ten seeds that nothing was chosen
on, at the rates of the exploration. Each stage is corrected over its own family (Bonferroni for intervals, Holm for p-values):
exploration over all comparisons of plans that have their five seeds and an adapter that clearly beats the head alone; confirmation
over all leads, whether their fresh seeds have run or not. Controls claim nothing and are in neither; nor is anything with seeds
missing, which decides nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analyzers.compare.statistics import holm, p_value, t_interval
from benchmarks.planner.programme import CONTROLS, EXPLORED, FRESH, HEAD
from benchmarks.planner.tasks import ADAPTING, TASKS

UNIFORM = "uniform"
LEVEL = 0.05
EXPLORATION, CONFIRMATION = "exploration", "confirmation"
SEEDS = {EXPLORATION: EXPLORED, CONFIRMATION: FRESH}


@dataclass(frozen=True)
class Comparison:
    """One arm against uniform in one study and stage, in points (hundredths of the metric). seeds: how many of the stage's both have.
    tuned: each at its own best rate, `rate` and `uniform_rate`; equal: over all seeds and rates, both at the same rate (a seed's mean
    over the rates is one observation). low, high: 95 % t interval over seeds; wide_low, wide_high: the same at 95 % for all `family`
    comparisons of the stage together (Bonferroni). p: that the tuned difference is 0; holm: after Holm's correction, NaN for what is
    not `counted` in the family. better: seeds on which the arm is ahead."""

    model: str
    task: str
    rank: int
    stage: str
    arm: str
    seeds: int
    rate: float
    uniform_rate: float
    tuned: float
    low: float
    high: float
    wide_low: float
    wide_high: float
    p: float
    holm: float
    equal: float
    equal_low: float
    equal_high: float
    better: int
    family: int
    counted: bool
    head_gain: float
    head_low: float
    head_high: float
    adapting: bool

    @property
    def study(self) -> tuple[str, str, int]:
        return self.model, self.task, self.rank

    @property
    def control(self) -> bool:
        return self.arm.endswith(CONTROLS)

    @property
    def complete(self) -> bool:
        """Whether a verdict may rest on it: all seeds of its stage, and an adapter that clearly beats the head alone."""
        return self.seeds == len(SEEDS[self.stage]) and self.head_low > 0

    @property
    def lead(self) -> bool:
        """Whether fresh seeds are asked of it."""
        return self.stage == EXPLORATION and self.complete and not self.control and self.low > 0

    @property
    def about(self) -> dict[str, Any]:
        """Its fields, numbers rounded; None for those that are not there."""
        return {key: _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class HeadGain:
    """What uniform ranks gain over the head alone on the seeds of the exploration, in points, with its 95 % t interval."""

    model: str
    task: str
    rank: int
    seeds: int
    gain: float
    low: float
    high: float

    @property
    def study(self) -> tuple[str, str, int]:
        return self.model, self.task, self.rank


def _plain(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 4) if math.isfinite(value) else None


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float, float, float]:
    """(mean, low, high, p): the paired t interval at 1 - `level`, and the two-sided p-value that the mean is 0."""
    if len(values) < 2:
        return float(values.mean()), float("-inf"), float("inf"), 1.0
    return *t_interval(values, 1 - level), p_value(values)


Study = dict[str, dict[float, dict[int, dict[str, Any]]]]  # arm -> rate -> seed -> trial


def arranged(records: Sequence[dict[str, Any]]) -> dict[tuple[str, str, int], Study]:
    """(model, task, rank) -> the trials of that study; a seed counts for an arm once all rates of it have run."""
    studies: dict[tuple[str, str, int], Study] = {}
    for one in records:
        study = studies.setdefault((one["model"], one["task"], one["rank"]), defaultdict(lambda: defaultdict(dict)))
        study[one["arm"]][one["rate"]][one["seed"]] = one
    for study in studies.values():
        for arm, rates in study.items():
            every = set.intersection(*(set(seeds) for seeds in rates.values()))
            if arm != HEAD:
                all_rates = max(len(others) for others in study.values())
                every = every if len(rates) == all_rates else set()
            study[arm] = {rate: {seed: seeds[seed] for seed in sorted(every)} for rate, seeds in rates.items()}
    return studies


def comparisons(records: Sequence[dict[str, Any]]) -> list[Comparison]:
    """Every arm but uniform and the head, against uniform on the seeds that both have finished at all rates: all of the exploration,
    then leads and their controls on fresh seeds, as far as these have run."""
    studies = arranged(records)
    explored = _finished(
        EXPLORATION,
        [
            (key, arm, one)
            for key, study in studies.items()
            for arm in study
            if arm not in (UNIFORM, HEAD) and (one := _pair(study, arm, EXPLORED))
        ],
    )
    leads = {(*one.study, one.arm) for one in explored if one.lead}
    again = [one for one in explored if (*one.study, one.arm.removesuffix(CONTROLS[0])) in leads]
    fresh = [
        (one.study, one.arm, found)
        for one in again
        if (found := _pair(studies[one.study], one.arm, FRESH, (one.rate, one.uniform_rate)))
    ]
    return [*explored, *_finished(CONFIRMATION, fresh, len(leads))]


def head_gains(records: Sequence[dict[str, Any]]) -> list[HeadGain]:
    """Of every study, those too that no plan has been tried in; fewest seeds first."""
    pairs = [
        (key, one) for key, study in arranged(records).items() if UNIFORM in study and (one := _pair(study, UNIFORM, EXPLORED))
    ]
    found = [HeadGain(*key, one["seeds"], one["head_gain"], one["head_low"], one["head_high"]) for key, one in pairs]
    return sorted(found, key=lambda one: one.seeds)


def _finished(
    stage: str, pairs: list[tuple[tuple[str, str, int], str, dict[str, Any]]], family: int | None = None
) -> list[Comparison]:
    """`pairs` of one stage, corrected. family: how many there are to be; as many as count where it is not given."""
    counts = [not arm.endswith(CONTROLS) and one["seeds"] == len(SEEDS[stage]) and one["head_low"] > 0 for _, arm, one in pairs]
    number = sum(counts) if family is None else family
    lacking = [1.0] * (number - sum(counts))  # leads whose fresh seeds have yet to run: they count, with the p-value of nothing
    p = iter(holm([one["p"] for counted, (_, _, one) in zip(counts, pairs, strict=True) if counted] + lacking))
    return [
        Comparison(
            *key, stage, arm, family=number, counted=counted, holm=next(p) if counted else math.nan,
            adapting=TASKS[key[1]][1] == ADAPTING, **_widened(one, LEVEL / max(1, number)),
        )
        for counted, (key, arm, one) in zip(counts, pairs, strict=True)
    ]  # fmt: skip


def _widened(one: dict[str, Any], level: float) -> dict[str, Any]:
    _, low, high, _ = interval(one["differences"], level)
    return {key: value for key, value in one.items() if key != "differences"} | {"wide_low": low, "wide_high": high}


def _pair(study: Study, arm: str, wanted: Iterable[int], chosen: tuple[float, float] | None = None) -> dict[str, Any] | None:
    """`arm` against uniform on the seeds `wanted` that have run, at the rates `chosen` (the arm's, uniform's) or, where none are given,
    at those that validate best over these seeds."""
    own, other, head = study[arm], study.get(UNIFORM, {}), study.get(HEAD, {}).get(0.0, {})
    rates = [rate for rate in own if rate in other]
    every = set.intersection(*(set(own[rate]) & set(other[rate]) for rate in rates), set(head)) if rates else set()
    seeds = sorted(every & set(wanted))
    if not seeds:
        return None

    def table(trials: dict[float, dict[int, dict[str, Any]]], what: str) -> np.ndarray:
        return 100 * np.array([[trials[rate][seed][what] for seed in seeds] for rate in rates])

    if chosen:
        best, base = (rates.index(rate) for rate in chosen)
    else:
        best, base = (int(table(trials, "validation_score").mean(1).argmax()) for trials in (own, other))
    scores, uniform = table(own, "score"), table(other, "score")
    alone = 100 * np.array([head[seed]["score"] for seed in seeds])
    differences = scores[best] - uniform[base]
    tuned, low, high, p = interval(differences)
    equal, equal_low, equal_high, _ = interval((scores - uniform).mean(0))
    gain, head_low, head_high, _ = interval(uniform[base] - alone)
    return {
        "seeds": len(seeds), "rate": rates[best], "uniform_rate": rates[base], "tuned": tuned, "low": low, "high": high, "p": p,
        "equal": equal, "equal_low": equal_low, "equal_high": equal_high, "better": int((differences > 0).sum()),
        "head_gain": gain, "head_low": head_low, "head_high": head_high, "differences": differences,
    }  # fmt: skip
