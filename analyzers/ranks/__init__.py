"""Choosing a rank for every layer under a budget.

    PlanSettings + Checkpoint (+ Spectra, Signals)  ->  a strategy scores every step  ->  `share` spends the budget  ->  RankPlan

A strategy is one file in `strategies/`: it scores the step from rank r to r + 1 in a layer. Where scores are gains that add up, the
solver finds the largest sum; where they only say what comes first, the allocator keeps equal layers equal. Knows nothing about how
ranks are shown.
"""

from analyzers.plans import Budget, PlanSettings, RankPlan
from analyzers.ranks.fitting import largest_that_fits
from analyzers.ranks.recommend import make_plan, uniform_baseline
from analyzers.ranks.signals import Signals
from analyzers.ranks.strategies import STRATEGIES, Strategy, strategy

__all__ = [
    "STRATEGIES",
    "Budget",
    "PlanSettings",
    "RankPlan",
    "Signals",
    "Strategy",
    "largest_that_fits",
    "make_plan",
    "strategy",
    "uniform_baseline",
]
