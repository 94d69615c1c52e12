"""The rank plan: the question (`PlanSettings`) and its answer (`RankPlan`). A leaf: it knows nothing of who makes or uses plans.

PlanSettings  ->  make_plan (`analyzers.ranks`), or with_ranks, load  ->  RankPlan  ->  {size, fleet, memory, trials}, export.text
"""

from analyzers.plans.budget import Budget
from analyzers.plans.plan import RankPlan
from analyzers.plans.settings import PlanSettings

__all__ = ["Budget", "PlanSettings", "RankPlan"]
