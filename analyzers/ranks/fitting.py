"""The largest plan whose training fits a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyzers.memory import Gpu, MemorySettings, estimate_memory
from analyzers.memory.fitting import largest
from analyzers.plans import Budget, PlanSettings, RankPlan
from analyzers.ranks.recommend import make_plan
from analyzers.ranks.signals import Signals
from analyzers.words import gib_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError
from loraxs_core.targets import select_targets

if TYPE_CHECKING:
    from analyzers.spectra import Spectra


def largest_that_fits(
    checkpoint: Checkpoint,
    settings: PlanSettings,
    step: MemorySettings,
    gpu: Gpu,
    *,
    spectra: Spectra | None = None,
    signals: Signals | None = None,
) -> RankPlan:
    """The plan of `settings` at the largest budget, in steps of what one uniform rank more costs, whose training `step` fits `gpu`.

    Fitting means that the upper end of the estimate's interval fits. The budget of `settings` is not read. Raises PlanError where not
    even the smallest plan fits, and what `make_plan` and `estimate_memory` raise.
    """
    plans: dict[int, RankPlan] = {}

    def needed(rank: int) -> int:
        budget = Budget.like_rank(rank)
        plans[rank] = make_plan(checkpoint, settings=settings, budget=budget, spectra=spectra, signals=signals)
        return estimate_memory(checkpoint, step.but(plan=plans[rank])).interval[1]

    targets = select_targets(checkpoint, settings.targets)
    most = min(settings.max_rank or min(weight.full_rank for weight in targets), *(weight.full_rank for weight in targets))
    rank = largest(needed, most, gpu.bytes)
    if not rank:
        raise PlanError(
            f"Not even rank 1 fits {gpu.name} ({gib_text(gpu.bytes)} usable) with {step.batch} sequences of {step.sequence} tokens; "
            "take a smaller batch or shorter sequences."
        )
    return plans[rank]
