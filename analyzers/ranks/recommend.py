"""From a model, a strategy and a budget to a `RankPlan`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analyzers.plans import Budget, PlanSettings, RankPlan
from analyzers.ranks.question import Question
from analyzers.ranks.share import on_the_gpu, sides
from analyzers.ranks.signals import Signals
from analyzers.storage import adapter_size
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError

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
    task says (`Strategy.signal`); `loraxs measure` measures them.

    The cost is at most the budget, and at least 99 % of it wherever any ranks within the limits do so and lose no gain; a plan that uses
    less says why in its `notes`. The result is deterministic.

    Raises PlanError for an unknown strategy, a limit that no rank satisfies, a rank larger than a matrix, a budget below
    `min_rank` in every layer, or missing spectra; CheckpointError for targets that match nothing.
    """
    if strategy:
        changes["strategy"] = strategy
    asked = replace(settings or PlanSettings(), **changes)
    question = Question.of(checkpoint, asked, spectra, signals)
    match asked.budget.kind:
        case "adapter_bytes":
            return _within_bytes(question)
        case "lora_parameters":
            return question.plan(asked.budget.value, sides)
        case "gpu_bytes":
            return question.plan(asked.budget.value, on_the_gpu)
        case "gain_kept":
            return _keeping(question)
    return question.plan(asked.budget.numbers(question.weights) or 0)


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


def _within_bytes(question: Question) -> RankPlan:
    """The plan of the largest Σ r² whose adapter file fits: found by bisection, as the header's length depends on the plan."""
    budget, floor = question.settings.budget, question.floor()

    def size(plan: RankPlan) -> int:
        return adapter_size(question.checkpoint, "lora-xs", plan=plan, dtype=budget.dtype, task=budget.task).file_bytes

    best = question.plan(floor)
    if size(best) > budget.value:
        raise PlanError(
            f"The budget of {budget.value:,} bytes is below the smallest adapter of these {len(best.ranks)} layers, which has "
            f"{size(best):,} bytes (header included); raise it or name fewer target modules."
        )
    low, high, ceiling = floor, max(floor, budget.value), question.ceiling()
    refused: dict[int, PlanError] = {}  # what the strategy cannot judge: no answer where the answer lies below it
    while low < high:
        middle = (low + high + 1) // 2
        try:
            candidate = question.plan(middle)
        except PlanError as error:
            refused[middle], high = error, middle - 1
            continue
        if size(candidate) <= budget.value:
            low, best = middle, candidate
            if candidate.trainable == ceiling:
                break
        else:
            high = middle - 1
    if low + 1 in refused:
        raise refused[low + 1]
    return best


def _keeping(question: Question) -> RankPlan:
    """The smallest plan that keeps `Budget.gain_kept` of what all ranks allowed and known would gain, by bisection over the budget."""
    share = question.settings.budget.value / 100
    question = question.up_to_what_is_known()
    low, high = question.floor(), question.ceiling()
    enough = share * question.gain(high) - 1e-12
    while low < high:
        middle = (low + high) // 2
        if question.gain(middle) >= enough:
            high = middle
        else:
            low = middle + 1
    return question.plan(high)
