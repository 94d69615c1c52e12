"""Memory under a rank plan: the plan's ranks reach the traced step, whatever their pattern."""

import pytest

from analyzers.memory import MemorySettings, estimate_memory
from analyzers.ranks import Budget, make_plan
from sample_models import open_model


@pytest.fixture(scope="module")
def bert():
    return open_model("bert-base")


@pytest.mark.parametrize("method", ["lora-xs", "lora"])
def test_a_uniform_plan_is_that_rank_everywhere(bert, method):
    plan = make_plan(bert, "uniform", budget=Budget.like_rank(16))
    by_plan = estimate_memory(bert, MemorySettings(method=method, plan=plan, batch=4, sequence=64))
    by_rank = estimate_memory(bert, MemorySettings(method=method, rank=16, batch=4, sequence=64))
    assert by_plan.how == by_rank.how != "closed form"
    assert by_plan.breakdown == by_rank.breakdown


def test_a_plan_that_differs_by_role_is_traced(bert):
    plan = make_plan(bert, "role", budget=Budget.like_rank(16))
    estimate = estimate_memory(bert, MemorySettings(plan=plan, batch=4, sequence=64))
    assert estimate.how != "closed form"
    assert 0 < estimate.breakdown["adapters"] < estimate.breakdown["weights"]
