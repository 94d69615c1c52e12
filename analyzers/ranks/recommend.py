"""From a model, a strategy and a budget to a `RankPlan`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from analyzers.checks import positive, whole
from analyzers.plans import RankPlan
from analyzers.ranks import strategies
from analyzers.ranks.allocate import FULL_USE, Allocation, allocate
from analyzers.ranks.budget import Budget
from analyzers.ranks.strategies import DEFAULT, Layer, Strategy
from analyzers.storage import adapter_size
from analyzers.words import whole_percent
from loraxs_core.architecture import module_keys
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError
from loraxs_core.inventory import Weight
from loraxs_core.targets import select_targets, target_patterns

if TYPE_CHECKING:
    from analyzers.spectra import Spectra


def make_plan(
    checkpoint: Checkpoint,
    strategy: str = DEFAULT,
    *,
    budget: Budget,
    spectra: Spectra | None = None,
    targets: str | Sequence[str] = "paper",
    min_rank: int = 1,
    max_rank: int | None = None,
    alpha_over_r: float = 1.0,
) -> RankPlan:
    """A rank for every target layer of `checkpoint`, by the strategy of that name, within `budget`.

    Σ r² <= budget, and >= 95 % of it wherever any ranks between `min_rank` and min(`max_rank`, the matrix's smaller side) do so;
    where none do, the plan's `notes` say so. `alpha_over_r` is the scaling of every layer. The result is deterministic.

    spectra: needed by strategies that score by singular values (`Strategy.needs_spectra`); targets: see `select_targets`.

    Raises PlanError for an unknown strategy, a limit that no rank satisfies, a rank larger than a matrix, a budget below
    `min_rank` in every layer, or missing spectra; CheckpointError for targets that match nothing.
    """
    chosen = strategies.strategy(strategy)
    weights = select_targets(checkpoint, targets)
    _check_limits(weights, min_rank, max_rank, alpha_over_r)
    layers = _layers(weights, chosen, spectra)
    keys = module_keys(checkpoint)
    patterns = target_patterns(checkpoint, weights)

    def allocation(limit: int) -> Allocation:
        return _allocate(layers, chosen, limit, min_rank, max_rank)

    def captured(found: Allocation, limit: int) -> tuple[str, ...]:
        if not chosen.needs_spectra:
            return ()
        uniform = _allocate(layers, strategies.STRATEGIES["uniform"], limit, min_rank, max_rank)
        own, other = _mean_energy(layers, found.ranks), _mean_energy(layers, uniform.ranks)
        if math.isnan(own):
            return ()
        said = f"Captures {100 * own:.1f} % of a layer's energy on average"
        if math.isnan(other):  # they reach beyond what was scanned
            return (f"{said}.",)
        return (f"{said}; uniform ranks at this budget ({uniform.used:,} numbers) capture {100 * other:.1f} %.",)

    def plan(found: Allocation, limit: int) -> RankPlan:
        return RankPlan(
            model=checkpoint.name,
            strategy=chosen.name,
            ranks={weight.name: int(rank) for weight, rank in zip(weights, found.ranks, strict=True)},
            shapes={weight.name: weight.shape for weight in weights},
            targets=patterns,
            alpha_over_r=float(alpha_over_r),
            budget=limit,
            requested=str(budget),
            evidence=chosen.evidence,
            notes=(*_notes(found, limit, len(weights)), *captured(found, limit)),
            modules={weight.name: keys[weight.name] for weight in weights if keys[weight.name] != weight.key},
        )

    limit = budget.numbers(weights)
    if limit is None:
        return _within_bytes(checkpoint, budget, len(weights) * min_rank**2, lambda limit: plan(allocation(limit), limit))
    return plan(allocation(limit), limit)


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


def _check_limits(weights: Sequence[Weight], min_rank: int, max_rank: int | None, alpha_over_r: float) -> None:
    whole(min_rank, "The smallest rank", error=PlanError)
    if max_rank is not None and whole(max_rank, "The largest rank", error=PlanError) < min_rank:
        raise PlanError(f"The largest rank ({max_rank}) is below the smallest ({min_rank}); swap them or widen the limits.")
    smallest = min(weights, key=lambda weight: weight.full_rank)
    if min_rank > smallest.full_rank:
        raise PlanError(
            f"Rank {min_rank} is larger than the matrix {smallest.name} ({smallest.shape[0]} x {smallest.shape[1]}); "
            f"the smallest rank can be {smallest.full_rank} at most."
        )
    positive(alpha_over_r, "The scaling alpha/r", error=PlanError)


def _layers(weights: Sequence[Weight], chosen: Strategy, spectra: Spectra | None) -> list[Layer]:
    if not chosen.needs_spectra:
        return [Layer(weight) for weight in weights]
    if spectra is None:
        raise PlanError(f"The {chosen.name!r} strategy needs the spectra of the model; scan it first (`loraxs scan`).")
    missing = [weight.name for weight in weights if weight.name not in spectra.layers]
    if missing:
        raise PlanError(
            f"The spectra hold nothing for {missing[0]}{f' and {len(missing) - 1} more layers' if missing[1:] else ''}; "
            "scan this model with these targets first."
        )
    return [Layer(weight, spectra.layers[weight.name]) for weight in weights]


def _allocate(layers: Sequence[Layer], chosen: Strategy, limit: int, min_rank: int, max_rank: int | None) -> Allocation:
    floor = len(layers) * min_rank**2
    if limit < floor:
        raise PlanError(
            f"The budget of {limit:,} trained numbers is below rank {min_rank} in each of the {len(layers)} layers "
            f"({floor:,} numbers); raise it or name fewer target modules."
        )
    affordable = math.isqrt(limit - floor + min_rank**2)
    scores, cut = [], []
    for layer in layers:
        top = min(layer.weight.full_rank, affordable, max_rank or affordable)
        judged = chosen.score(layer, np.arange(min_rank, top))
        known = int(np.argmax(np.isnan(judged))) if np.isnan(judged).any() else len(judged)
        scores.append(judged[:known])
        cut.append(known < len(judged))
    found = allocate(scores, [min_rank] * len(layers), limit)
    for layer, steps, rank, is_cut in zip(layers, scores, found.ranks.tolist(), cut, strict=True):
        if is_cut and rank == min_rank + len(steps):
            raise _not_judged(layer, chosen, rank)
    return found


def _not_judged(layer: Layer, chosen: Strategy, rank: int) -> PlanError:
    """The budget reaches a step that the strategy cannot judge; any rank above would be made up."""
    known = f"{len(layer.spectrum.singular_values)} of {layer.weight.full_rank} " if layer.spectrum else ""
    return PlanError(
        f"The {chosen.name!r} strategy cannot say what more than rank {rank} is worth in {layer.weight.name}, of which it has "
        f"{known}singular values; scan the whole of them, or set the largest rank to {rank} at most."
    )


def _mean_energy(layers: Sequence[Layer], ranks: np.ndarray) -> float:
    """The share of ‖W0‖²_F inside the rank, averaged over layers; NaN where one was not scanned that far."""
    return float(np.mean([layer.spectrum.energy_at(int(rank)) for layer, rank in zip(layers, ranks, strict=True)]))


def _within_bytes(checkpoint: Checkpoint, budget: Budget, floor: int, plan_for: Callable[[int], RankPlan]) -> RankPlan:
    """The plan of the largest Σ r² whose adapter file fits: found by bisection, as the header's length depends on the plan."""

    def size(plan: RankPlan) -> int:
        return adapter_size(checkpoint, "lora-xs", plan=plan, dtype=budget.dtype, task=budget.task).file_bytes

    best = plan_for(floor)
    if size(best) > budget.value:
        raise PlanError(
            f"The budget of {budget.value:,} bytes is below the smallest adapter of these {len(best.ranks)} layers, which has "
            f"{size(best):,} bytes (header included); raise it or name fewer target modules."
        )
    low, high = floor, max(floor, budget.value)
    while low < high:
        middle = (low + high + 1) // 2
        candidate = plan_for(middle)
        if size(candidate) <= budget.value:
            low, best = middle, candidate
        else:
            high = middle - 1
        if candidate.trainable == sum(min(shape) ** 2 for shape in candidate.shapes.values()):
            break
    return best


def _notes(found: Allocation, limit: int, layers: int) -> tuple[str, ...]:
    if found.best_possible is None:
        return ()
    return (
        f"Uses {found.used:,} of {limit:,} trained numbers ({whole_percent(found.used / limit)}), the most that whole ranks within the "
        f"limits of these {layers} layers can use; {whole_percent(FULL_USE)} is out of reach.",
    )
