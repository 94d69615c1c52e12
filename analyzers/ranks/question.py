"""The question behind a plan, worked out: which layers, what each may take, what the strategy thinks of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from analyzers.plans import PlanSettings, RankPlan
from analyzers.ranks import strategies
from analyzers.ranks.evidence import measured
from analyzers.ranks.share import ENOUGH, Cost, Limits, Shared, share, squares
from analyzers.ranks.signals import Signals
from analyzers.ranks.strategies import Layer, Strategy
from analyzers.words import whole_percent
from loraxs_core.architecture import left_out, module_keys
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError
from loraxs_core.inventory import Weight
from loraxs_core.targets import select_targets, target_patterns

if TYPE_CHECKING:
    from analyzers.spectra import Spectra


STABLE = 0.8  # agreement of halves from which on an order of layers is called stable


@dataclass(frozen=True)
class Question:
    """A plan that is asked for, with what it is worked out from: the layers, their pinned ranks, and how they are called in memory."""

    checkpoint: Checkpoint
    settings: PlanSettings
    strategy: Strategy
    weights: list[Weight]
    layers: list[Layer]
    pinned: dict[str, int]
    modules: dict[str, str]

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, settings: PlanSettings, spectra: Spectra | None = None, signals: Signals | None = None
    ) -> Question:
        """Raises PlanError for an unknown strategy, limits or pins that a matrix cannot meet, or what the strategy needs and lacks;
        CheckpointError for targets that match nothing."""
        chosen = strategies.strategy(settings.strategy)
        weights = select_targets(checkpoint, settings.targets)
        if settings.exclude:
            without = {weight.name for weight in select_targets(checkpoint, settings.exclude)}
            weights = [weight for weight in weights if weight.name not in without]
            if not weights:
                raise PlanError("Every target module is excluded; nothing is left to plan for.")
        pinned = _pinned(checkpoint, settings, weights)
        _check_smallest([weight for weight in weights if weight.name not in pinned], settings)
        keys = module_keys(checkpoint)
        modules = {weight.name: keys[weight.name] for weight in weights if keys[weight.name] != weight.key}
        return cls(checkpoint, settings, chosen, weights, _layers(weights, chosen, spectra, signals), pinned, modules)

    def plan(self, limit: int, cost: Cost = squares) -> RankPlan:
        """The plan that costs at most `limit`."""
        found = self._shared(self.strategy, limit, cost)
        kept = [(weight, int(rank)) for weight, rank in zip(self.weights, found.ranks, strict=True) if rank]
        if not kept:
            raise PlanError(f"The budget of {limit:,} pays for no layer at all; raise it.")
        names = {weight.name for weight, _ in kept}
        ranks = {weight.name: rank for weight, rank in kept}
        return RankPlan(
            model=self.checkpoint.name,
            strategy=self.strategy.name,
            ranks=ranks,
            shapes={weight.name: weight.shape for weight, _ in kept},
            targets=target_patterns(self.checkpoint, [weight for weight, _ in kept]),
            alpha_over_r=float(self.settings.alpha_over_r),
            budget=limit if cost is squares else sum(rank**2 for rank in ranks.values()),
            requested=str(self.settings.budget),
            evidence=f"{self.strategy.evidence} {measured(self.strategy.name).line}",
            notes=(
                *filter(None, [left_out(self.checkpoint), self._experts(), self._remark()]),
                *_notes(found, limit, len(self.weights), self.settings.budget.unit),
                *self._captured(found, limit, cost),
                *self._agreement(),
            ),
            modules={name: path for name, path in self.modules.items() if name in names},
        )

    def floor(self) -> int:
        """Σ r² of the least ranks; of the cheapest single layer where all may be left out."""
        limits = self._limits(self.strategy, None, squares)
        together: dict[int, int] = {}
        for group, limit in zip(self._groups() or range(len(limits)), limits, strict=True):
            together[group] = together.get(group, 0) + int(limit.ranks[limit.ranks > 0][0]) ** 2
        return sum(int(limit.ranks[0]) ** 2 for limit in limits) or min(together.values())

    def ceiling(self) -> int:
        """Σ r² of the largest ranks that limits, matrices and measurements allow."""
        return sum(int(limit.ranks[-1]) ** 2 for limit in self._limits(self.strategy, None, squares))

    def gain(self, limit: int) -> float:
        """Σ of what the strategy says that the ranks of `plan` at this limit gain. Raises PlanError for a strategy that knows only an
        order."""
        if not self.strategy.additive:
            known = ", ".join(name for name, one in strategies.STRATEGIES.items() if one.additive)
            raise PlanError(
                f"The {self.strategy.name!r} strategy says which rank comes first, not what it gains; choose {known}."
            )
        total = 0.0
        for layer, rank in zip(self.layers, self._shared(self.strategy, limit, squares).ranks.tolist(), strict=True):
            steps = np.arange(rank)
            total += float(np.sum(self.strategy.score(layer, steps) * (2 * steps + 1)))
        return total

    def up_to_what_is_known(self) -> Question:
        """This question with no rank above those that the strategy can judge in every layer."""
        known = min(layer.known for layer in self.layers)
        if self.settings.max_rank and self.settings.max_rank <= known:
            return self
        return replace(self, settings=replace(self.settings, max_rank=known))

    def _shared(self, chosen: Strategy, limit: int, cost: Cost) -> Shared:
        limits = self._limits(chosen, limit, cost)
        floor = sum(int(cost(layer, one.ranks[:1])[0]) for layer, one in zip(self.layers, limits, strict=True))
        if limit < floor:
            firsts = {int(one.ranks[0]) for one in limits}
            least = f"rank {firsts.pop()}" if len(firsts) == 1 else "the least or pinned rank"
            raise PlanError(
                f"The budget of {limit:,} {self.settings.budget.unit} is below {least} in each of the {len(self.layers)} layers ({floor:,}); raise it or name "
                "fewer target modules."
            )
        return share(self.layers, chosen, limits, limit, cost, self._groups())

    def _limits(self, chosen: Strategy, budget: int | None, cost: Cost) -> list[Limits]:
        """What each layer may take; with a budget, no more than is left when all others take their least."""
        settings, limits = self.settings, []
        low, high = self._spread(chosen, budget, cost)
        for layer in self.layers:
            name, full = layer.weight.name, layer.weight.full_rank
            if name in self.pinned:
                limits.append(Limits(np.array([self.pinned[name]])))
                continue
            step = settings.multiple_of
            ranks = np.arange(-(-settings.min_rank // step) * step, min(full, settings.max_rank or full) + 1, step)
            if not len(ranks):
                raise PlanError(
                    f"No multiple of {step} is a rank that {name} ({layer.weight.shape[0]} x {layer.weight.shape[1]}) may take; change "
                    "the limits or exclude it."
                )
            ranks = _near(ranks, low, high or full)
            limits.append(Limits(np.concatenate([[0], ranks]) if settings.may_leave_out else ranks))
        if budget is None:
            return limits
        costs = [cost(layer, limit.ranks) for layer, limit in zip(self.layers, limits, strict=True)]
        spare = budget - sum(int(one[0]) for one in costs)
        return [
            Limits(limit.ranks[: max(1, int(np.searchsorted(one, one[0] + spare, side="right")))])
            for limit, one in zip(limits, costs, strict=True)
        ]

    def _spread(self, chosen: Strategy, budget: int | None, cost: Cost) -> tuple[int, int | None]:
        """(least, largest) rank where a strategy's ranks stay near the uniform one."""
        if not chosen.spread or budget is None:
            return 0, None
        level = self._uniform_level(budget, cost)
        return math.floor(level / chosen.spread), max(1, math.ceil(level * chosen.spread))

    def _uniform_level(self, budget: int, cost: Cost) -> float:
        """The rank that `budget` pays for in every layer, in whatever it is counted; between two whole ones where it pays for a part
        of the step."""

        def total(rank: int) -> int:
            return sum(int(cost(layer, np.array([rank]))[0]) for layer in self.layers)

        low, high = 0, 1
        while total(high) <= budget:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if total(middle) <= budget else (low, middle)
        return low + (budget - total(low)) / (total(high) - total(low))

    def _groups(self) -> list[int] | None:
        if not self.settings.same:
            return None
        keys = [
            (weight.role if self.settings.same == "role" else weight.layer) if weight.name not in self.pinned else weight.name
            for weight in self.weights
        ]
        numbers: dict[object, int] = {}
        return [numbers.setdefault(key, len(numbers)) for key in keys]

    def _experts(self) -> str:
        """That a mixture's experts get no adapter, where nobody named single modules."""
        count = sum(weight.kind == "expert" for weight in self.checkpoint.weights)
        if not count or self.settings.targets not in ("paper", "all-linear"):
            return ""
        return f"The {count:,} matrices of this model's experts get no adapter: no plan here reaches them."

    def _remark(self) -> str:
        """What the strategy says of layers whose ranks are its own to choose."""
        return self.strategy.remark([layer for layer in self.layers if layer.weight.name not in self.pinned] or self.layers)

    def _agreement(self) -> tuple[str, ...]:
        """How far the signal can be trusted, by its own halves."""
        if not self.strategy.signal:
            return ()
        agreement = self.layers[0].agreement
        trust = "much of this plan is chance" if agreement < STABLE else "the order of layers is stable"
        return (
            f"Two halves of the calibration data agree on the order of layers by {agreement:.2f} (Spearman; 1 is the same order): {trust}.",
        )

    def _captured(self, found: Shared, limit: int, cost: Cost) -> tuple[str, ...]:
        """How much of the layers' energy lies inside the ranks, beside uniform ranks."""
        if not self.strategy.needs_spectra:
            return ()
        uniform = self._shared(strategies.STRATEGIES["uniform"], limit, cost)
        own, other = _mean_energy(self.layers, found.ranks), _mean_energy(self.layers, uniform.ranks)
        if math.isnan(own):
            return ()
        said = f"Captures {100 * own:.1f} % of a layer's energy on average"
        if math.isnan(other):  # they reach beyond what was scanned
            return (f"{said}.",)
        return (f"{said}; uniform ranks at this budget ({uniform.used:,} numbers) capture {100 * other:.1f} %.",)


def _near(ranks: np.ndarray, low: int, high: int) -> np.ndarray:
    """Those of `ranks` (rising) from `low` to `high`, or the nearest one: what the user allows goes before what a strategy wants."""
    within = ranks[(ranks >= low) & (ranks <= high)]
    below = ranks[ranks < low]
    return within if len(within) else below[-1:] if len(below) else ranks[:1]


def _pinned(checkpoint: Checkpoint, settings: PlanSettings, weights: Sequence[Weight]) -> dict[str, int]:
    shapes = {weight.name: weight for weight in weights}
    pinned: dict[str, int] = {}
    for target, rank in settings.pins:
        names = [weight.name for weight in select_targets(checkpoint, [target]) if weight.name in shapes]
        if not names:
            raise PlanError(f"The pin {target!r} matches no layer of the plan.")
        for name in names:
            if rank > shapes[name].full_rank:
                out, inner = shapes[name].shape
                raise PlanError(
                    f"The pinned rank {rank} is larger than the matrix {name} ({out} x {inner}); at most {min(out, inner)}."
                )
            pinned[name] = rank
    return pinned


def _check_smallest(weights: Sequence[Weight], settings: PlanSettings) -> None:
    smallest = min(weights, key=lambda weight: weight.full_rank, default=None)
    if smallest is not None and settings.min_rank > smallest.full_rank:
        raise PlanError(
            f"Rank {settings.min_rank} is larger than the matrix {smallest.name} ({smallest.shape[0]} x {smallest.shape[1]}); "
            f"the smallest rank can be {smallest.full_rank} at most."
        )


def _layers(weights: Sequence[Weight], chosen: Strategy, spectra: Spectra | None, signals: Signals | None) -> list[Layer]:
    if chosen.signal:
        if signals is None:
            raise PlanError(
                f"The {chosen.name!r} strategy needs what a task says about ranks; measure it first (`loraxs measure`) and give the file."
            )
        names = [weight.name for weight in weights]
        importance, agreement = signals.importance(chosen.signal, names), signals.agreement(chosen.signal, names)
        return [
            Layer(
                weight,
                signal=signals.curve(chosen.signal, weight.name),
                importance=importance[weight.name],
                agreement=agreement,
            )
            for weight in weights
        ]
    if not chosen.needs_spectra:
        return [Layer(weight) for weight in weights]
    if spectra is None:
        raise PlanError(f"The {chosen.name!r} strategy needs the spectra of the model; scan it first (`loraxs scan`).")
    if damaged := [weight.name for weight in weights if weight.name in spectra.not_finite]:
        raise PlanError(
            f"{damaged[0]}{f' and {len(damaged) - 1} more layers' if damaged[1:] else ''} of this model hold NaN or infinite numbers, so no "
            "rank follows from their spectra; download the checkpoint again, or name target modules without them."
        )
    missing = [weight.name for weight in weights if weight.name not in spectra.layers]
    if missing:
        raise PlanError(
            f"The spectra hold nothing for {missing[0]}{f' and {len(missing) - 1} more layers' if missing[1:] else ''}; "
            "scan this model with these targets first."
        )
    return [Layer(weight, spectra.layers[weight.name]) for weight in weights]


def _mean_energy(layers: Sequence[Layer], ranks: np.ndarray) -> float:
    """The share of ‖W0‖²_F inside the rank, averaged over layers; NaN where one was not scanned that far."""
    shares = [
        layer.spectrum.energy_at(int(rank)) for layer, rank in zip(layers, ranks, strict=True) if layer.spectrum is not None
    ]
    return float(np.mean(shares)) if shares else math.nan


def _notes(found: Shared, limit: int, layers: int, unit: str) -> tuple[str, ...]:
    if found.used >= ENOUGH * limit:
        return ()
    uses = f"Uses {found.used:,} of {limit:,} {unit} ({whole_percent(found.used / limit)})"
    if found.most > found.used:
        return (f"{uses}: by what this strategy says of gains, no plan that uses more is worth more.",)
    return (
        f"{uses}, the most that whole ranks within the limits of these {layers} layers can use; {whole_percent(ENOUGH)} is out of reach.",
    )
