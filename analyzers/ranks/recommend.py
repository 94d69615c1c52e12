"""From a model, a strategy and a budget to a `RankPlan`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers.plans import Budget, PlanSettings, RankPlan
from analyzers.ranks import strategies
from analyzers.ranks.signals import Signals
from analyzers.ranks.share import ENOUGH, Limits, Shared, affordable, share
from analyzers.ranks.strategies import Layer, Strategy
from analyzers.storage import adapter_size
from analyzers.words import whole_percent
from loraxs_core.architecture import left_out, module_keys
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError
from loraxs_core.inventory import Weight
from loraxs_core.targets import select_targets, target_patterns

if TYPE_CHECKING:
    from analyzers.spectra import Spectra


def make_plan(
    checkpoint: Checkpoint,
    strategy: str | None = None,
    *,
    settings: PlanSettings | None = None,
    spectra: Spectra | None = None,
    signals: Signals | None = None,
    **changes: Any,
) -> RankPlan:
    """A rank for every target layer of `checkpoint`, by a strategy, within a budget.

    >>> from sample_models import open_model
    >>> plan = make_plan(open_model("roberta-large"), "uniform", budget=Budget.like_rank(8))
    >>> plan.trainable == 8**2 * len(plan.ranks)
    True

    settings, strategy, changes: a `PlanSettings`, its strategy, and fields of it to change, such as ``budget`` and ``min_rank``.
    spectra: needed by strategies that score by singular values (`Strategy.needs_spectra`). signals: by those that follow what a
    task says (`Strategy.signal`); `analyzers.compare.calibration` measures them.

    Σ r² <= budget, and >= 99 % of it wherever any ranks between `min_rank` and min(`max_rank`, the matrix's smaller side) do so;
    where none do, the plan's `notes` say so. The result is deterministic.

    Raises PlanError for an unknown strategy, a limit that no rank satisfies, a rank larger than a matrix, a budget below
    `min_rank` in every layer, or missing spectra; CheckpointError for targets that match nothing.
    """
    if strategy:
        changes["strategy"] = strategy
    asked = replace(settings or PlanSettings(), **changes)
    question = _Question.of(checkpoint, asked, spectra, signals)
    limit = asked.budget.numbers(question.weights)
    if limit is None:
        return _within_bytes(question)
    return question.plan(limit)


def uniform_baseline(checkpoint: Checkpoint, plan: RankPlan, *, min_rank: int = 1, max_rank: int | None = None) -> RankPlan:
    """The uniform plan of the same layers, budget and scaling: what every other plan is to be compared with.

    Raises PlanError when `plan` is of another model, or its budget is below `min_rank` in every layer.
    """
    return make_plan(
        checkpoint,
        "uniform",
        budget=Budget.parameters(plan.budget),
        targets=tuple(plan.ranks),
        min_rank=min_rank,
        max_rank=max_rank,
        alpha_over_r=plan.alpha_over_r,
    )


@dataclass(frozen=True)
class _Question:
    """A plan that is asked for, with what it is worked out from: the layers, and how they are called in memory."""

    checkpoint: Checkpoint
    settings: PlanSettings
    strategy: Strategy
    weights: list[Weight]
    layers: list[Layer]
    patterns: list[str]
    modules: dict[str, str]

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, settings: PlanSettings, spectra: Spectra | None, signals: Signals | None
    ) -> _Question:
        chosen = strategies.strategy(settings.strategy)
        weights = select_targets(checkpoint, settings.targets)
        _check_smallest(weights, settings.min_rank)
        layers = _layers(weights, chosen, spectra, signals)
        keys = module_keys(checkpoint)
        modules = {weight.name: keys[weight.name] for weight in weights if keys[weight.name] != weight.key}
        return cls(checkpoint, settings, chosen, weights, layers, target_patterns(checkpoint, weights), modules)

    def plan(self, limit: int) -> RankPlan:
        """The plan of at most `limit` trained numbers."""
        found = _allocate(self.layers, self.strategy, limit, self.settings)
        return RankPlan(
            model=self.checkpoint.name,
            strategy=self.strategy.name,
            ranks={weight.name: int(rank) for weight, rank in zip(self.weights, found.ranks, strict=True)},
            shapes={weight.name: weight.shape for weight in self.weights},
            targets=self.patterns,
            alpha_over_r=float(self.settings.alpha_over_r),
            budget=limit,
            requested=str(self.settings.budget),
            evidence=self.strategy.evidence,
            notes=(
                *filter(None, [left_out(self.checkpoint)]),
                *_notes(found, limit, len(self.weights)),
                *self._captured(found, limit),
            ),
            modules=self.modules,
        )

    def _captured(self, found: Shared, limit: int) -> tuple[str, ...]:
        """How much of the layers' energy lies inside the ranks, beside uniform ranks."""
        if not self.strategy.needs_spectra:
            return ()
        uniform = _allocate(self.layers, strategies.STRATEGIES["uniform"], limit, self.settings)
        own, other = _mean_energy(self.layers, found.ranks), _mean_energy(self.layers, uniform.ranks)
        if math.isnan(own):
            return ()
        said = f"Captures {100 * own:.1f} % of a layer's energy on average"
        if math.isnan(other):  # they reach beyond what was scanned
            return (f"{said}.",)
        return (f"{said}; uniform ranks at this budget ({uniform.used:,} numbers) capture {100 * other:.1f} %.",)


def _check_smallest(weights: Sequence[Weight], min_rank: int) -> None:
    smallest = min(weights, key=lambda weight: weight.full_rank)
    if min_rank > smallest.full_rank:
        raise PlanError(
            f"Rank {min_rank} is larger than the matrix {smallest.name} ({smallest.shape[0]} x {smallest.shape[1]}); "
            f"the smallest rank can be {smallest.full_rank} at most."
        )


def _layers(
    weights: Sequence[Weight], chosen: Strategy, spectra: Spectra | None, signals: Signals | None
) -> list[Layer]:
    if chosen.signal:
        if signals is None:
            raise PlanError(
                f"The {chosen.name!r} strategy needs what a task says about ranks; measure it first (`loraxs measure`) and give the file."
            )
        return [Layer(weight, signal=signals.curve(chosen.signal, weight.name)) for weight in weights]
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


def _allocate(layers: Sequence[Layer], chosen: Strategy, limit: int, settings: PlanSettings) -> Shared:
    least, most = settings.min_rank, settings.max_rank
    floor = len(layers) * least**2
    if limit < floor:
        raise PlanError(
            f"The budget of {limit:,} trained numbers is below rank {least} in each of the {len(layers)} layers "
            f"({floor:,} numbers); raise it or name fewer target modules."
        )
    reach = affordable(limit, len(layers), least)
    if chosen.spread:
        level = math.sqrt(limit / len(layers))
        least, reach = max(least, math.floor(level / chosen.spread)), min(reach, max(least, math.ceil(level * chosen.spread)))
    tops = [min(layer.weight.full_rank, reach, most or reach) for layer in layers]
    return share(layers, chosen, [Limits(np.arange(min(least, top), top + 1)) for top in tops], limit)


def _mean_energy(layers: Sequence[Layer], ranks: np.ndarray) -> float:
    """The share of ‖W0‖²_F inside the rank, averaged over layers; NaN where one was not scanned that far."""
    shares = [
        layer.spectrum.energy_at(int(rank)) for layer, rank in zip(layers, ranks, strict=True) if layer.spectrum is not None
    ]
    return float(np.mean(shares)) if shares else math.nan


def _within_bytes(question: _Question) -> RankPlan:
    """The plan of the largest Σ r² whose adapter file fits: found by bisection, as the header's length depends on the plan."""
    budget, floor = question.settings.budget, len(question.weights) * question.settings.min_rank**2

    def size(plan: RankPlan) -> int:
        return adapter_size(question.checkpoint, "lora-xs", plan=plan, dtype=budget.dtype, task=budget.task).file_bytes

    best = question.plan(floor)
    if size(best) > budget.value:
        raise PlanError(
            f"The budget of {budget.value:,} bytes is below the smallest adapter of these {len(best.ranks)} layers, which has "
            f"{size(best):,} bytes (header included); raise it or name fewer target modules."
        )
    low, high = floor, max(floor, budget.value)
    while low < high:
        middle = (low + high + 1) // 2
        candidate = question.plan(middle)
        if size(candidate) <= budget.value:
            low, best = middle, candidate
        else:
            high = middle - 1
        if candidate.trainable == sum(min(shape) ** 2 for shape in candidate.shapes.values()):
            break
    return best


def _notes(found: Shared, limit: int, layers: int) -> tuple[str, ...]:
    if found.full:
        return ()
    return (
        f"Uses {found.used:,} of {limit:,} trained numbers ({whole_percent(found.used / limit)}), the most that whole ranks within the "
        f"limits of these {layers} layers can use; {whole_percent(ENOUGH)} is out of reach.",
    )
