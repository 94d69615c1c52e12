"""Choosing a rank for every layer under a budget.

    PlanSettings + Checkpoint (+ Spectra)  ->  a strategy scores every step  ->  the allocator takes the best  ->  RankPlan

A strategy is one file in `strategies/`: it scores the step from rank r to r + 1 in a
layer, and one integer allocator takes the best steps that the budget pays for. Knows nothing about how ranks are shown.
"""

from analyzers.plans import Budget, PlanSettings, RankPlan
from analyzers.ranks.recommend import make_plan, uniform_baseline
from analyzers.ranks.strategies import STRATEGIES, Strategy, strategy

__all__ = ["STRATEGIES", "Budget", "PlanSettings", "RankPlan", "Strategy", "make_plan", "strategy", "uniform_baseline"]
