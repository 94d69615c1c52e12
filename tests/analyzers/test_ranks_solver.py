"""The budget solver against dynamic programming, and what a person may ask of it: other costs, limits, pins, groups, rank 0."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers.ranks import Budget, PlanSettings, make_plan
from analyzers.ranks.share import ENOUGH, fill
from analyzers.ranks.solver import Choice, middle_out, solve
from analyzers.spectra import scan
from analyzers.storage import adapter_size
from loraxs_core.errors import PlanError, WorkbenchError
from loraxs_core.roles import layer_of, role_of
from sample_models import open_model


def by_dynamic_programming(choices, budget):
    """The largest Σ gain within `budget`, by the textbook table over every whole cost."""
    best = np.full(budget + 1, -np.inf)
    best[0] = 0.0
    for choice in choices:
        new = np.full(budget + 1, -np.inf)
        for gain, cost in zip(choice.gains, choice.costs, strict=True):
            if cost <= budget:
                new[cost:] = np.maximum(new[cost:], best[: budget + 1 - cost] + gain)
        best = new
    return float(best.max())


def random_choice(rng, shape):
    ranks = np.arange(rng.integers(0, 3), rng.integers(4, 22))
    gains = {
        "concave": lambda: np.cumsum(np.sort(rng.random(len(ranks)))[::-1]),
        "concave in the cost": lambda: np.cumsum(np.sort(rng.random(len(ranks)))[::-1] * (2 * ranks + 1)),
        "steps": lambda: np.cumsum(rng.random(len(ranks)) * (rng.random(len(ranks)) < 0.3)),
        "convex": lambda: np.cumsum(np.sort(rng.random(len(ranks)))),
        "with losses": lambda: np.cumsum(rng.normal(size=len(ranks))),
    }[shape]()
    return Choice(ranks, gains, ranks**2 if rng.random() < 0.5 else ranks * int(rng.integers(1, 50)))


@pytest.mark.parametrize("shape", ["concave", "concave in the cost", "steps", "convex", "with losses"])
def test_equals_dynamic_programming(shape):
    rng = np.random.default_rng(3)
    for _ in range(40):
        choices = [random_choice(rng, shape) for _ in range(int(rng.integers(1, 25)))]
        least, most = (sum(int(choice.costs[end]) for choice in choices) for end in (0, -1))
        budget = int(rng.integers(least, most + 1))
        found, best = solve(choices, budget), by_dynamic_programming(choices, budget)
        assert found.cost <= budget
        assert found.gain == pytest.approx(sum(c.gains[p] for c, p in zip(choices, found.picks, strict=True)))
        assert found.cost == sum(c.costs[p] for c, p in zip(choices, found.picks, strict=True))
        assert best == pytest.approx(found.gain, rel=1e-9, abs=1e-9)
        assert found.bound >= best - 1e-9 * abs(best)


def test_stays_within_a_thousandth_of_the_best_when_told_to():
    rng = np.random.default_rng(4)
    for _ in range(20):
        choices = [random_choice(rng, "steps") for _ in range(20)]
        budget = sum(int(choice.costs[-1]) for choice in choices) // 3
        best = by_dynamic_programming(choices, budget)
        assert solve(choices, budget, tolerance=1e-3).gain >= (1 - 1e-3) * best


def test_the_bound_holds_when_the_proof_is_cut_short(monkeypatch):
    rng = np.random.default_rng(5)
    choices = [
        Choice(np.arange(3), np.array([0, w, 2 * w + 0.001 * rng.random()]), np.array([0, w, 2 * w])) for w in range(31, 91, 2)
    ]
    budget = 1000
    best = by_dynamic_programming(choices, budget)
    monkeypatch.setattr("analyzers.ranks.solver.MOST_STATES", 3)
    monkeypatch.setattr("analyzers.ranks.solver.MOST_WORK", 50)
    found = solve(choices, budget)
    assert found.gain <= best + 1e-9 <= found.bound + 2e-9
    assert found.cost <= budget


def test_refuses_what_is_no_choice_and_what_cannot_be_paid():
    with pytest.raises(ValueError, match="rise"):
        Choice(np.array([1, 2]), np.zeros(2), np.array([4, 4]))
    with pytest.raises(ValueError, match="finite"):
        Choice(np.array([1, 2]), np.array([0, np.nan]), np.array([1, 4]))
    with pytest.raises(ValueError, match="exceed"):
        solve([Choice(np.array([3]), np.zeros(1), np.array([9]))], 8)


def test_equals_go_to_the_middle_first():
    choices = [Choice(np.arange(1, 4), np.array([0.0, 1.0, 1.5]), np.arange(1, 4) ** 2) for _ in range(7)]
    assert solve(choices, 7 + 3 * 3).ranks.tolist() == [1, 1, 2, 2, 2, 1, 1]
    assert middle_out(4).tolist() == [2, 0, 1, 3]


def test_the_rest_of_a_budget_goes_to_single_layers_from_the_middle_out():
    ranks = np.full(9, 10)
    filled = fill(ranks, [20] * 9, [-(np.arange(1, 20) + 0.5)] * 9, [1] * 9, 970)
    assert filled.tolist() == [10, 10, 10, 11, 11, 11, 10, 10, 10]
    assert (filled**2).sum() == 963
    assert ENOUGH * 975 + 21 > 963


@pytest.fixture(scope="module")
def roberta():
    return open_model("roberta-large")


@pytest.mark.parametrize("model", ["minilm", "roberta-large", "llama-3-8b", "bert-base"])
@pytest.mark.parametrize("rank", [2, 3, 4, 7, 16, 25])
def test_the_role_plan_uses_99_percent(model, rank):
    plan = make_plan(open_model(model), "role", budget=Budget.like_rank(rank))
    assert ENOUGH * plan.budget <= plan.trainable <= plan.budget
    assert plan.notes == ()


# -- constraints --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["uniform", "role", "energy"])
def test_pins_exclusions_and_multiples(minilm, strategy):
    spectra = scan(minilm) if strategy == "energy" else None
    plan = make_plan(
        minilm,
        strategy,
        budget=Budget.like_rank(16),
        spectra=spectra,
        exclude=("encoder.layer.0.output.dense",),
        pins={"mlp.down": 8, "encoder.layer.5.output.dense": 21},
        multiple_of=4,
        min_rank=4,
    )
    assert "encoder.layer.0.output.dense" not in plan.ranks
    assert len(plan.ranks) == 23
    assert plan.ranks["encoder.layer.5.output.dense"] == 21
    assert {plan.ranks[f"encoder.layer.{layer}.output.dense"] for layer in range(1, 5)} == {8}
    others = [rank for name, rank in plan.ranks.items() if not name.endswith(".output.dense") or "attention" in name]
    assert all(rank % 4 == 0 and rank >= 4 for rank in others)
    assert 0.95 * plan.budget <= plan.trainable <= plan.budget


@pytest.mark.parametrize("same", ["role", "block"])
@pytest.mark.parametrize("strategy", ["role", "energy"])
def test_modules_that_share_a_rank(minilm, strategy, same):
    spectra = scan(minilm) if strategy == "energy" else None
    plan = make_plan(minilm, strategy, budget=Budget.like_rank(12), spectra=spectra, same=same)
    frame = plan.frame(minilm)
    groups = frame.groupby("role" if same == "role" else "layer")["rank"]
    assert (groups.nunique() == 1).all()
    assert plan.trainable <= plan.budget
    if strategy == "role" and same == "role":
        ranks = groups.first()
        assert ranks["mlp.down"] > 1.6 * ranks["attention.query"]


def test_a_layer_may_be_left_out(minilm):
    spectra = scan(minilm)
    limited = {"budget": Budget.parameters(20), "spectra": spectra}
    with pytest.raises(PlanError, match="below rank 1"):
        make_plan(minilm, "energy", **limited)
    plan = make_plan(minilm, "energy", may_leave_out=True, **limited)
    assert 0 < len(plan.ranks) <= 20
    assert plan.trainable == 20
    assert plan.rank_pattern is not None
    assert len(plan.targets) >= 1


def test_costs_of_lora_and_of_the_gpu(roberta):
    for strategy in ("uniform", "role"):
        plan = make_plan(roberta, strategy, budget=Budget.lora_parameters(1_000_000))
        paid = sum(rank * sum(plan.shapes[name]) for name, rank in plan.ranks.items())
        assert ENOUGH * 1_000_000 <= paid <= 1_000_000
        assert paid == adapter_size(roberta, "lora", plan=plan).trainable
        plan = make_plan(roberta, strategy, budget=Budget.gpu_bytes(4_000_000))
        paid = sum(4 * rank * sum(plan.shapes[name]) + 16 * rank**2 for name, rank in plan.ranks.items())
        assert ENOUGH * 4_000_000 <= paid <= 4_000_000


def test_the_smallest_plan_that_keeps_a_share_of_the_gain(minilm):
    spectra = scan(minilm)
    settings = PlanSettings(strategy="energy", budget=Budget.gain_kept(60), max_rank=64)

    def captured(plan):
        return plan.frame(minilm, spectra)["energy_at_rank"].sum()

    whole = captured(make_plan(minilm, settings=settings, spectra=spectra, budget=Budget.gain_kept(100)))
    plan = make_plan(minilm, settings=settings, spectra=spectra)
    assert captured(plan) >= 0.6 * whole * (1 - 1e-9)
    fewer = make_plan(minilm, settings=settings, spectra=spectra, budget=Budget.parameters(plan.trainable - 1))
    assert captured(fewer) < 0.6 * whole
    with pytest.raises(PlanError, match="says which rank comes first"):
        make_plan(minilm, "role", budget=Budget.gain_kept(60))


def test_a_file_budget_beyond_what_the_largest_rank_needs(minilm):
    """All ranks at their largest fit, but the first budgets that are tried do not."""
    whole = make_plan(minilm, "uniform", budget=Budget.like_rank(12), max_rank=12)
    size = adapter_size(minilm, "lora-xs", plan=whole).file_bytes
    assert set(make_plan(minilm, "uniform", budget=Budget.adapter_bytes(size), max_rank=12).ranks.values()) == {12}
    less = make_plan(minilm, "uniform", budget=Budget.adapter_bytes(size - 500), max_rank=12)
    assert adapter_size(minilm, "lora-xs", plan=less).file_bytes >= ENOUGH * (size - 500)


@pytest.mark.parametrize("more", [{}, {"same": "role"}, {"multiple_of": 4, "same": "block"}])
def test_a_small_file_of_layers_that_may_be_left_out(minilm, more):
    plan = make_plan(minilm, "role", budget=Budget.adapter_bytes(9000), may_leave_out=True, **more)
    assert adapter_size(minilm, "lora-xs", plan=plan).file_bytes <= 9000


@pytest.mark.parametrize("strategy", ["uniform", "role"])
@pytest.mark.parametrize("same", ["", "block", "role"])
def test_an_order_uses_99_percent_wherever_any_ranks_do(minilm, strategy, same):
    """In LoRA's numbers, against every sum that there is; a plan that cannot says so."""
    names = make_plan(minilm, "uniform", budget=Budget.like_rank(1)).shapes
    sides = {name: sum(shape) for name, shape in names.items()}
    for budget in (61_000, 107_523, 152_300, 199_999):
        settings = PlanSettings(strategy=strategy, budget=Budget.lora_parameters(budget), same=same)
        plan = make_plan(minilm, settings=settings)
        used = sum(rank * sides[name] for name, rank in plan.ranks.items())
        keys = {name: {"block": layer_of(name), "role": role_of(name), "": name}[same] for name in names}
        prices = [sum(sides[name] for name in names if keys[name] == key) for key in set(keys.values())]
        reachable = 1 << (sum(prices) // 384)  # rank 1 everywhere, counted in 384s
        for price in prices:
            for _ in range(budget // price):
                reachable |= reachable << (price // 384)
        most = max(most for most in range(budget // 384 + 1) if reachable >> most & 1) * 384
        if most >= ENOUGH * budget:
            assert ENOUGH * budget <= used <= budget
        else:
            assert used == most
            assert "the most that whole ranks" in plan.notes[-1]


@pytest.mark.slow
def test_the_largest_plan_that_fits_a_gpu(minilm):
    """Between what rank 1 and rank 300 need: the plan fits, and one uniform rank more does not."""
    from analyzers.memory import CONTEXT, Gpu, MemorySettings, estimate_memory
    from analyzers.ranks import largest_that_fits

    step = MemorySettings(batch=2, sequence=16)

    def needed(rank):
        plan = make_plan(minilm, "uniform", budget=Budget.like_rank(rank))
        return estimate_memory(minilm, step.but(plan=plan)).interval[1]

    room = (needed(1) + needed(300)) // 2
    plan = largest_that_fits(minilm, PlanSettings(strategy="uniform"), step, Gpu("made", room + CONTEXT[1], 1))
    rank = plan.most_frequent_rank
    assert needed(rank) <= room < needed(rank + 4)
    with pytest.raises(PlanError, match="Not even rank 1 fits made"):
        largest_that_fits(minilm, PlanSettings(strategy="uniform"), step, Gpu("made", needed(1) // 2 + CONTEXT[1], 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pins": {"nothing": 3}}, "matches the target 'nothing'"),
        ({"pins": {"encoder.layer.0.intermediate.dense": 3}}, "matches no layer of the plan"),
        ({"pins": {"mlp.down": 0}}, "at least 1"),
        ({"pins": {"mlp.down": 500}}, "larger than the matrix"),
        ({"pins": {"mlp.down": 100}, "budget": Budget.parameters(5000)}, "below the least or pinned rank"),
        ({"multiple_of": 0}, "at least 1"),
        ({"multiple_of": 8, "min_rank": 3, "max_rank": 7}, "No multiple of 8"),
        ({"same": "colour"}, "by role or block"),
        ({"exclude": ("attention.query", "attention.value", "attention.output", "mlp.down")}, "nothing is left"),
        ({"budget": Budget.parameters(500), "may_leave_out": True, "min_rank": 30}, "pays for no layer"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_sentence(minilm, changes, message):
    with pytest.raises(WorkbenchError, match=message) as caught:
        make_plan(minilm, **{"strategy": "uniform", "budget": Budget.like_rank(8), **changes})
    assert "\n" not in str(caught.value)


def test_a_share_of_the_gain_is_a_percentage():
    for percent in (0, 101, 50.5):
        with pytest.raises(PlanError, match=r"whole number of at least 1|at most 100"):
            Budget.gain_kept(percent)
