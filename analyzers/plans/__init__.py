"""The rank plan: which layers get an adapter, and of what rank. A leaf: it knows methods, and nothing of who makes or uses plans.

make_plan (`analyzers.ranks`), with_ranks, load  ->  RankPlan  ->  {size, fleet, memory, trials}, export.text, lora_xs_config
"""

from analyzers.plans.plan import RankPlan

__all__ = ["RankPlan"]
