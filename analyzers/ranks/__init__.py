"""Choosing a rank for every layer under a budget.

(inventory, spectra, budget) -> `RankPlan`. A strategy is one file in `strategies/`: it scores the step from rank r to r + 1 in a
layer, and one integer allocator takes the best steps that the budget pays for. Knows nothing about how ranks are shown.
"""

from analyzers.plans import RankPlan
from analyzers.ranks.budget import Budget
from analyzers.ranks.recommend import make_plan, uniform_baseline
from analyzers.ranks.strategies import STRATEGIES, Strategy, strategy

__all__ = ["STRATEGIES", "Budget", "RankPlan", "Strategy", "make_plan", "strategy", "uniform_baseline"]
