"""Successive halving of learning rates: how far each rate trains, which go on, which is chosen, and the record of it on disk.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization" (AISTATS 2016). All rates begin the same
short training, cut off twice: the better half goes on each time, and the last two are trained to its end. All that training together
costs less than one trial, so that a variant with its trial costs at most twice the trial alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analyzers.compare.trial_settings import FORWARD, WARMUP, TrialSettings
from loraxs_core.documents import read_object
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.paths import atomic_file

if TYPE_CHECKING:
    from analyzers.compare.settings import SweepSettings
    from analyzers.compare.tasks import Splits

FILE = "tuning.json"
SPAN = 16.0  # the smallest rate is the default by this
STEPS_BETWEEN = {8: 2.0, 4: 4.0}  # how many rates are tried, and how far apart; few steps are not enough for eight
SHARE = 0.9  # of a trial's cost; the rest is for building each rate's adapter
HELD_SHARE, MOST_HELD, LEAST_HELD = 0.2, 256, 8
LEAST_TRAINED = 16
LEAST_FIRST = 3  # steps of the first round after the warm-up, during which all rates are near zero


def candidates(rate: float, count: int = 8) -> tuple[float, ...]:
    """`count` (a key of `STEPS_BETWEEN`) rates around a default: eight, each twice the one before, or four, each four times."""
    return tuple(float(f"{rate / SPAN * STEPS_BETWEEN[count] ** power:.3g}") for power in range(count))


class TooFewSteps(SettingsError):
    """A training that is too short for so many rates."""


@dataclass(frozen=True)
class Halving:
    """rates: ascending. held: training examples that are set aside to score on. ends: the steps at which each round ends, counted from the
    beginning; ``counts[i]`` rates take part in round i."""

    rates: tuple[float, ...]
    held: int
    ends: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        return _counts(len(self.rates))

    @property
    def steps(self) -> int:
        """Trained in all rounds together."""
        return sum(count * (end - begin) for count, begin, end in zip(self.counts, (0, *self.ends), self.ends, strict=False))

    def cost(self, trial: TrialSettings) -> float:
        """In batches read forward, as `TrialSettings.cost`."""
        return self.steps * trial.training_cost / trial.steps + sum(self.counts) * _evaluation(trial, self.held)

    @classmethod
    def around(cls, trial: TrialSettings, train: int, validation: int, test: int) -> Halving:
        """`of`, with as many rates around that of `trial` as its steps are enough for."""
        most, *fewer = STEPS_BETWEEN
        try:
            return cls.of(trial, candidates(trial.learning_rate, most), train, validation, test)
        except TooFewSteps:
            return cls.of(trial, candidates(trial.learning_rate, fewer[-1]), train, validation, test)

    @classmethod
    def of(cls, trial: TrialSettings, rates: Sequence[float], train: int, validation: int, test: int) -> Halving:
        """For `trial`, with so many examples of each split. Raises SettingsError where there are too few of them, or too few steps."""
        held = min(MOST_HELD, int(train * HELD_SHARE))
        if held < LEAST_HELD or train - held < LEAST_TRAINED:
            raise SettingsError(
                f"Learning rates are tuned on training examples that are set aside, and {train} are too few for that; give "
                "rates with --learning-rate, or more data."
            )
        counts = _counts(len(rates))
        whole = SHARE * trial.cost(validation, test)
        # Scoring takes a quarter at most: with few steps fewer examples are set aside.
        while held > LEAST_HELD and sum(counts) * _evaluation(trial, held) > whole / 4:
            held = max(LEAST_HELD, held // 2)
        left = whole - sum(counts) * _evaluation(trial, held)
        budget = min(left / (trial.training_cost / trial.steps), SHARE * trial.steps)
        parts = [math.floor(budget / len(counts) / count) for count in counts]  # a third of it each round
        ends = tuple(sum(parts[: place + 1]) for place in range(len(parts)))
        if parts[0] < math.ceil(WARMUP * ends[-1]) + LEAST_FIRST:
            raise TooFewSteps(
                f"{len(rates)} learning rates are tuned within the cost of one trial, and {trial.steps} steps are too few for that; train for "
                "longer, or give fewer rates with --learning-rate."
            )
        return cls(tuple(sorted(rates)), held, ends)


def halvings(settings: SweepSettings, splits: Splits) -> list[tuple[TrialSettings, Halving]]:
    """How the rates of each variant are looked for: its trial of the first seed, and the plan. Raises SettingsError where they cannot be on
    this data, or in so few steps."""
    counts = len(splits.train), len(splits.validation), len(splits.test)
    return [
        (trial, Halving.of(trial, rates, *counts) if rates else Halving.around(trial, *counts))
        for trial, rates in settings.to_tune()
    ]


def _counts(rates: int) -> tuple[int, ...]:
    """How many take part in each round: 8, 4, 2."""
    counts = []
    while rates > 1:
        counts.append(rates)
        rates = -(-rates // 2)
    return tuple(counts)


def _evaluation(trial: TrialSettings, examples: int) -> float:
    return FORWARD * -(-examples // trial.evaluation_batch)


@dataclass(frozen=True)
class Tuning:
    """What is known so far of one variant's rates.

    variant: its folder's name; label: as a table calls it. metric: of the scores, on `held` examples of the training split that are not
    trained on, `trained` that are. scores, losses: rate -> what it came to at the end of each round that it took part in; None where it diverged. chosen: the best;
    None until then, or where error says why there is none.
    """

    variant: str
    label: str
    method: str
    seed: int
    rates: tuple[float, ...]
    ends: tuple[int, ...]
    held: int
    trained: int
    metric: str = ""
    scores: dict[float, list[float | None]] = field(default_factory=dict)
    losses: dict[float, list[float | None]] = field(default_factory=dict)
    seconds: float = 0.0
    chosen: float | None = None
    error: str = ""

    def alive(self, round_: int) -> tuple[float, ...]:
        """The rates that take part in a round, once the one before is complete: the better half of it. Of two that score alike the one of
        less loss goes on; one that diverged does not."""
        if round_ == 0:
            return self.rates
        before = self._ranked(round_ - 1)
        return tuple(sorted(before[: -(-len(self.alive(round_ - 1)) // 2)]))

    def best(self) -> float | None:
        """Of the last round; None where all diverged."""
        ranked = self._ranked(len(self.ends) - 1)
        return ranked[0] if ranked else None

    def _ranked(self, round_: int) -> list[float]:
        """The rates of a round that have a score, the best first."""
        found = []
        for rate in self.alive(round_):
            score = self.scores[rate][round_] if self.scored(rate, round_) else None
            if score is not None:
                loss = self.losses[rate][round_]
                found.append((-score, math.inf if loss is None else loss, rate))
        return [rate for *_, rate in sorted(found)]

    def scored(self, rate: float, round_: int) -> bool:
        return len(self.scores.get(rate, [])) > round_

    def with_score(self, rate: float, score: float | None, loss: float | None, seconds: float) -> Tuning:
        scores = {**self.scores, rate: [*self.scores.get(rate, []), score]}
        losses = {**self.losses, rate: [*self.losses.get(rate, []), loss]}
        return dataclasses.replace(self, scores=scores, losses=losses, seconds=self.seconds + seconds)

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the smallest or the largest that was tried."""
        return self.chosen is not None and self.chosen in (self.rates[0], self.rates[-1])

    @property
    def sentence(self) -> str:
        """What came out, for a report."""
        if self.chosen is None:
            return self.error
        said = (
            f"{self.label}: learning rate {self.chosen:g}, the best of {len(self.rates)} from {self.rates[0]:g} to {self.rates[-1]:g} on "
            f"{self.held} training examples set aside"
        )
        if self.at_edge:
            where = "smallest" if self.chosen == self.rates[0] else "largest"
            return f"{said}; it is the {where} that was tried, so a better one may lie beyond."
        return f"{said}."

    def write(self, folder: Path) -> None:
        document = dataclasses.asdict(self)
        for name in ("scores", "losses"):
            document[name] = {repr(rate): values for rate, values in document[name].items()}
        with atomic_file(folder / FILE) as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Tuning | None:
        """What `write` wrote; None where there is nothing, or nothing that can be believed."""
        try:
            document = dict(read_object(folder / FILE))
            rates = tuple(float(rate) for rate in document.pop("rates"))
            scores, losses = (_numbers(document.pop(name)) for name in ("scores", "losses"))
            ends = tuple(int(end) for end in document.pop("ends"))
            found = cls(rates=rates, ends=ends, scores=scores, losses=losses, **document)
            told = {rate: len(values) for rate, values in scores.items()} == {
                rate: len(values) for rate, values in losses.items()
            }
            sound = told and set(scores) <= set(rates) and rates == tuple(sorted(rates)) and found.chosen in (None, *rates)
            texts = (found.variant, found.label, found.method, found.metric, found.error)
            return found if sound and rates and ends and all(isinstance(text, str) for text in texts) else None
        except (FileNotFoundError, RunError, KeyError, TypeError, ValueError, AttributeError):
            return None


def _numbers(values: dict) -> dict[float, list[float | None]]:
    return {float(rate): [None if one is None else float(one) for one in own] for rate, own in values.items()}
