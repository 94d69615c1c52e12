"""`PlanSettings`: the question that a rank plan answers. Options, command and Python code that ask it again are made from its fields."""

from __future__ import annotations

from dataclasses import dataclass

from analyzers.checks import positive, whole
from analyzers.plans.budget import Budget
from loraxs_core.errors import PlanError

AS_RANK_16 = Budget("like_rank", 16)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """A plan that is asked for; every default of plans stands here.

    >>> PlanSettings(budget=Budget.parameters(10_000)).strategy
    'role'

    strategy: a key of `analyzers.ranks.STRATEGIES`. budget: what the plan may spend. targets: see
    `loraxs_core.targets.select_targets`. min_rank, max_rank: limits of every layer. alpha_over_r: the scaling of every layer.

    Raises PlanError for limits that no rank satisfies and a scaling that is no positive number.
    """

    strategy: str = "role"
    budget: Budget = AS_RANK_16
    targets: str | tuple[str, ...] = "paper"
    min_rank: int = 1
    max_rank: int | None = None
    alpha_over_r: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))
        whole(self.min_rank, "The smallest rank", error=PlanError)
        if self.max_rank is not None and whole(self.max_rank, "The largest rank", error=PlanError) < self.min_rank:
            raise PlanError(
                f"The largest rank ({self.max_rank}) is below the smallest ({self.min_rank}); swap them or widen the limits."
            )
        positive(self.alpha_over_r, "The scaling alpha/r", error=PlanError)
