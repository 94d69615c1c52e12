"""`PlanSettings`: the question that a rank plan answers. Options, command and Python code that ask it again are made from its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analyzers.checks import positive, whole
from analyzers.plans.budget import Budget
from loraxs_core.errors import PlanError

SAME = ("", "role", "block")
AS_RANK_16 = Budget("like_rank", 16)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """A plan that is asked for; every default of plans stands here.

    >>> PlanSettings(budget=Budget.parameters(10_000)).strategy
    'role'

    strategy: a key of `analyzers.ranks.STRATEGIES`. budget: what the plan may spend. targets: see
    `loraxs_core.targets.select_targets`. min_rank, max_rank: limits of every layer. alpha_over_r: the scaling of every layer.
    exclude: targets to leave out again. pins: module, suffix or role -> its rank, whatever the strategy says; of several that match, the
    last. multiple_of: ranks are multiples of it. same: ``role`` or ``block`` for one rank in all layers of a role, or all modules of a
    block. may_leave_out: whether a layer may get no adapter at all.

    Raises PlanError for limits that no rank satisfies and a scaling that is no positive number.
    """

    strategy: str = "role"
    budget: Budget = AS_RANK_16
    targets: str | tuple[str, ...] = "paper"
    min_rank: int = 1
    max_rank: int | None = None
    alpha_over_r: float = 1.0
    exclude: tuple[str, ...] = ()
    pins: tuple[tuple[str, int], ...] = ()
    multiple_of: int = 1
    same: str = ""
    may_leave_out: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))
        whole(self.min_rank, "The smallest rank", error=PlanError)
        if self.max_rank is not None and whole(self.max_rank, "The largest rank", error=PlanError) < self.min_rank:
            raise PlanError(
                f"The largest rank ({self.max_rank}) is below the smallest ({self.min_rank}); swap them or widen the limits."
            )
        pins = self.pins.items() if isinstance(self.pins, Mapping) else self.pins
        named = tuple((str(name), whole(rank, f"The rank pinned for {name}", error=PlanError)) for name, rank in pins)
        object.__setattr__(self, "pins", named)
        object.__setattr__(self, "exclude", tuple(self.exclude))
        whole(self.multiple_of, "What ranks are multiples of", error=PlanError)
        if self.max_rank is not None and self.max_rank // self.multiple_of * self.multiple_of < self.min_rank:
            raise PlanError(
                f"No multiple of {self.multiple_of} lies between the smallest rank ({self.min_rank}) and the largest ({self.max_rank})."
            )
        if self.same not in SAME:
            raise PlanError(f"Ranks are the same by {' or '.join(filter(None, SAME))}, not by {self.same!r}.")
        positive(self.alpha_over_r, "The scaling alpha/r", error=PlanError)
