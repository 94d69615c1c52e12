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

from analyzers.compare.trial_settings import FORWARD, TrialSettings
from loraxs_core.documents import read_object
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.paths import atomic_file

FILE = "tuning.json"
FACTOR, BELOW, ABOVE = 2.0, 4, 3  # of the default rate: eight rates, from a sixteenth to eight times it
SHARE = 0.9  # of a trial's cost; the rest is for building each rate's adapter
HELD_SHARE, MOST_HELD, LEAST_HELD = 0.2, 256, 8
LEAST_TRAINED = 16


def candidates(rate: float) -> tuple[float, ...]:
    """The rates that are tried around a default, each twice the one before."""
    return tuple(float(f"{rate * FACTOR**power:.3g}") for power in range(-BELOW, ABOVE + 1))


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
        if parts[0] < 1:
            raise SettingsError(
                f"{len(rates)} learning rates are tuned within the cost of one trial, and {trial.steps} steps are too few for that; train for "
                "longer, or give a rate with --learning-rate."
            )
        ends = tuple(sum(parts[: place + 1]) for place in range(len(parts)))
        return cls(tuple(sorted(rates)), held, ends)


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
    trained on, `trained` that are. scores: rate -> its score at the end of each round that it took part in; None where it diverged. chosen: the best;
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
    seconds: float = 0.0
    chosen: float | None = None
    error: str = ""

    def alive(self, round_: int) -> tuple[float, ...]:
        """The rates that take part in a round, once the one before is complete: the better half of it. Of two that score alike the smaller
        one goes on; one that diverged does not."""
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
        found = [(self.scores[rate][round_], rate) for rate in self.alive(round_) if self.scored(rate, round_)]
        return [rate for _, rate in sorted((-score, rate) for score, rate in found if score is not None)]

    def scored(self, rate: float, round_: int) -> bool:
        return len(self.scores.get(rate, [])) > round_

    def with_score(self, rate: float, score: float | None, seconds: float) -> Tuning:
        scores = {**self.scores, rate: [*self.scores.get(rate, []), score]}
        return dataclasses.replace(self, scores=scores, seconds=self.seconds + seconds)

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
        document["scores"] = {repr(rate): values for rate, values in self.scores.items()}
        with atomic_file(folder / FILE) as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Tuning | None:
        """What `write` wrote; None where there is nothing, or nothing that can be believed."""
        try:
            document = dict(read_object(folder / FILE))
            rates = tuple(float(rate) for rate in document.pop("rates"))
            scores = {
                float(rate): [None if one is None else float(one) for one in values]
                for rate, values in document.pop("scores").items()
            }
            ends = tuple(int(end) for end in document.pop("ends"))
            found = cls(rates=rates, ends=ends, scores=scores, **document)
            sound = set(scores) <= set(rates) and rates == tuple(sorted(rates)) and found.chosen in (None, *rates)
            texts = (found.variant, found.label, found.method, found.metric, found.error)
            return found if sound and rates and ends and all(isinstance(text, str) for text in texts) else None
        except (FileNotFoundError, RunError, KeyError, TypeError, ValueError, AttributeError):
            return None
