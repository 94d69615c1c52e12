"""What paired trials say: differences to uniform by seed, at equal rates and at each arm's own best rate, corrected for their number.

Rates are chosen by the mean validation score over all seeds; every rate ran on every seed. A verdict needs at least five seeds, and
an adapter that clearly beats the head alone: where it does not, ranks cannot matter and nothing can be said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analyzers.compare.statistics import holm, p_value, t_interval
from benchmarks.planner.programme import HEAD
from benchmarks.planner.tasks import ADAPTING, TASKS

UNIFORM = "uniform"
FEWEST_SEEDS = 5
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """One arm against uniform in one study, in points (hundredths of the metric). tuned: each at its own best rate, `rate` and
    `uniform_rate`; equal: over all seeds and rates, both at the same rate (a seed's mean over the rates is one observation). low, high:
    95 % t interval over seeds; wide_low, wide_high: the same at 95 % for all `family` comparisons together (Bonferroni). holm: the
    tuned difference's p-value after Holm's correction. better: seeds on which the arm is ahead."""

    model: str
    task: str
    rank: int
    arm: str
    seeds: int
    rate: float
    uniform_rate: float
    tuned: float
    low: float
    high: float
    wide_low: float
    wide_high: float
    holm: float
    equal: float
    equal_low: float
    equal_high: float
    better: int
    family: int
    head_gain: float
    head_low: float
    head_high: float
    adapting: bool

    @property
    def complete(self) -> bool:
        """Whether a verdict may rest on it."""
        return self.seeds >= FEWEST_SEEDS and self.head_low > 0

    @property
    def about(self) -> dict[str, Any]:
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


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
    """Every arm but uniform and the head, against uniform on the seeds that both have finished at all rates."""
    found = []
    for key, study in arranged(records).items():
        for arm in study:
            if arm not in (UNIFORM, HEAD) and (one := _pair(study, arm)):
                found.append((key, arm, one))
    corrected = holm([one["p"] for _, _, one in found])
    level = LEVEL / max(1, len(found))
    results = []
    for (key, arm, one), p in zip(found, corrected, strict=True):
        _, wide_low, wide_high, _ = interval(one.pop("differences"), level)
        one.pop("p")
        results.append(
            Comparison(
                *key, arm, holm=p, wide_low=wide_low, wide_high=wide_high, family=len(found), adapting=TASKS[key[1]][1] == ADAPTING, **one
            )
        )  # fmt: skip
    return results


def _pair(study: Study, arm: str) -> dict[str, Any] | None:
    own, other, head = study[arm], study.get(UNIFORM, {}), study.get(HEAD, {}).get(0.0, {})
    rates = [rate for rate in own if rate in other]
    seeds = sorted(set.intersection(*(set(own[rate]) & set(other[rate]) for rate in rates), set(head)) if rates else ())
    if not seeds:
        return None

    def table(trials: dict[float, dict[int, dict[str, Any]]], what: str) -> np.ndarray:
        return 100 * np.array([[trials[rate][seed][what] for seed in seeds] for rate in rates])

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


def verdict(arm: str, found: Sequence[Comparison]) -> tuple[str, str]:
    """(one word, one sentence) on the strategy `arm`, from all comparisons.

    ``supported``: a corrected interval above zero, tuned, and an equal-rate one above zero, on at least half of the tasks that need
    adaptation, where the permuted control does not gain as well, and no interval below zero anywhere. ``lead``: uncorrected intervals above zero. ``loses``: an interval below zero and
    none above. ``nothing shown``: neither. ``no verdict``: too few seeds, or an adapter that does not clearly beat the head.
    """
    own = [one for one in found if one.arm == arm]
    complete = [one for one in own if one.complete]
    if not own:
        return "not measured", "No paired trial of this program has been run with it yet."
    if not complete:
        seeds, gained = max(one.seeds for one in own), any(one.head_low > 0 for one in own)
        why = (
            f"{seeds} of {FEWEST_SEEDS} seeds so far"
            if seeds < FEWEST_SEEDS
            else "the adapter does not clearly beat the head alone"
        )
        return "no verdict", f"No verdict: {why}{'' if gained or seeds < FEWEST_SEEDS else '; ranks cannot matter there'}."
    adapting = {one.task for one in complete if one.adapting}
    control = {(one.task, one.rank) for one in found if one.arm == f"{arm}:permuted" and one.complete and one.low > 0}
    won = {
        one.task
        for one in complete
        if one.adapting and one.wide_low > 0 and one.equal_low > 0 and (one.task, one.rank) not in control
    }
    above, below = [one for one in complete if one.low > 0], [one for one in complete if one.high < 0]
    told = "; ".join(
        f"{TASKS[one.task][0].label} at r={one.rank}, {one.seeds} seeds: {one.tuned:+.1f} points ({one.low:+.1f} to {one.high:+.1f}; corrected {one.wide_low:+.1f} to "
        f"{one.wide_high:+.1f}), at equal rates {one.equal:+.1f} ({one.equal_low:+.1f} to {one.equal_high:+.1f})"
        for one in complete
    )
    if won and 2 * len(won) >= len(adapting) and not below:
        word = "supported"
    elif above and not below:
        word = "lead"
    elif below and not above:
        word = "loses"
    else:
        word = "nothing shown"
    meaning = {
        "supported": "It beats uniform ranks after correction",
        "lead": "A lead, not a result: not above zero after correction",
        "loses": "It loses to uniform ranks",
        "nothing shown": "No difference to uniform ranks is shown",
    }[word]
    where = ", ".join(dict.fromkeys(one.model for one in complete))
    return word, f"{meaning} ({where}, paired by seed, {complete[0].family} comparisons): {told}."
