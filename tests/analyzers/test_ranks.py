"""Plans: the allocator against exhaustive search, budgets, strategies, and what a person can get wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from analyzers.ranks import STRATEGIES, Budget, Strategy, make_plan
from analyzers.ranks.allocate import FULL_USE, allocate, spread_order
from analyzers.ranks.share import ENOUGH
from analyzers.spectra import LayerSpectrum, Spectra, scan
from analyzers.storage import adapter_size
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError
from loraxs_core.inventory import Weight
from sample_models import open_model


def random_scores(rng, layers, top):
    return [np.sort(rng.random(rng.integers(1, top)))[::-1] for _ in range(layers)]


def sums(scores, lower, limit):
    """Every reachable sum of squares, by brute force."""
    choices = [range(low, low + len(steps) + 1) for steps, low in zip(scores, lower, strict=True)]
    return {total for ranks in itertools.product(*choices) if (total := sum(rank**2 for rank in ranks)) <= limit}


def value(scores, lower, ranks):
    """Σ cost x score of the steps taken."""
    return sum(
        (2 * (low + step) + 1) * score
        for steps, low, rank in zip(scores, lower, ranks, strict=True)
        for step, score in enumerate(steps[: rank - low])
    )


def test_uses_95_percent_whenever_any_plan_does():
    rng = np.random.default_rng(1)
    reached = unreachable = 0
    for _ in range(400):
        layers = int(rng.integers(1, 5))
        scores = random_scores(rng, layers, 8)
        lower = [int(rng.integers(1, 4))] * layers
        limit = int(rng.integers(sum(low**2 for low in lower), 200))
        found = allocate(scores, lower, limit)
        possible = sums(scores, lower, limit)
        assert found.used == int((found.ranks**2).sum()) <= limit
        for rank, low, steps in zip(found.ranks, lower, scores, strict=True):
            assert low <= rank <= low + len(steps)
        if max(possible) >= FULL_USE * limit:
            reached += 1
            assert found.used >= FULL_USE * limit
            assert found.best_possible is None
        else:
            unreachable += 1
            assert found.used == found.best_possible == max(possible)
    assert reached > 50
    assert unreachable > 50


def test_takes_the_best_plan_of_its_cost():
    """Where the budget is exhausted step by step, no other ranks of the same cost or less are worth more."""
    rng = np.random.default_rng(2)
    for _ in range(60):
        scores = random_scores(rng, 4, 7)
        lower = [1] * 4
        generous = allocate(scores, lower, 10_000).ranks
        prices = sorted(((score, 2 * (1 + step) + 1) for steps in scores for step, score in enumerate(steps)), reverse=True)
        for taken in (2, len(prices) // 2, len(prices)):
            limit = 4 + sum(price for _, price in prices[:taken])
            ranks = allocate(scores, lower, limit).ranks
            best = max(
                value(scores, lower, other)
                for other in itertools.product(*(range(1, top + 1) for top in generous))
                if sum(rank**2 for rank in other) <= limit
            )
            assert value(scores, lower, ranks) == pytest.approx(best, rel=1e-12)


def test_equal_layers_are_served_evenly_along_the_depth():
    for count in (7, 24, 224):
        order = spread_order(count)
        assert sorted(order) == list(range(count))
        for period in (3, 4):  # no module of a repeating block is preferred
            first = np.flatnonzero(order < count // 2)
            shares = np.bincount(first % period, minlength=period)
            assert shares.max() - shares.min() <= 3


def inventory(sides, role="mlp.down", name="layers.{}.mlp.down_proj"):
    weights = [Weight(name.format(i), role, side, "float32", layer=i) for i, side in enumerate(sides)]
    return Checkpoint(name="made", config={"model_type": "llama"}, weights=weights)


@pytest.fixture(scope="module")
def roberta():
    return open_model("roberta-large")


@pytest.fixture(scope="module")
def llama():
    return open_model("llama-3-8b")


@pytest.mark.parametrize("strategy", ["uniform", "role"])
@pytest.mark.parametrize(
    "budget", [Budget.like_rank(4), Budget.like_rank(25), Budget.parameters(777), Budget.parameters(123_456)]
)
def test_budgets_are_kept_and_used(roberta, strategy, budget):
    plan = make_plan(roberta, strategy, budget=budget)
    assert len(plan.ranks) == 96
    assert plan.trainable == sum(rank**2 for rank in plan.ranks.values())
    assert ENOUGH * plan.budget <= plan.trainable <= plan.budget
    assert plan.notes == ()
    assert make_plan(roberta, strategy, budget=budget).ranks == plan.ranks


def test_the_papers_counts(roberta, llama):
    assert make_plan(roberta, "uniform", budget=Budget.like_rank(25)).trainable == 60_000
    assert set(make_plan(roberta, "uniform", budget=Budget.like_rank(25)).ranks.values()) == {25}
    assert make_plan(llama, "uniform", budget=Budget.like_rank(128)).trainable == 3_670_016


def test_uniform_ranks_differ_by_one_at_most(roberta):
    for budget in (100, 5_000, 70_001):
        ranks = set(make_plan(roberta, "uniform", budget=Budget.parameters(budget)).ranks.values())
        assert max(ranks) - min(ranks) <= 1


def test_equal_layers_stay_equal_where_99_percent_can_be_used_so(roberta, minilm):
    plan = make_plan(roberta, "uniform", budget=Budget.parameters(96 * 20**2 + 300))
    assert set(plan.ranks.values()) == {20}
    assert plan.trainable >= ENOUGH * plan.budget
    uneven = make_plan(roberta, "uniform", budget=Budget.parameters(96 * 5**2 + 500))
    assert set(uneven.ranks.values()) == {5, 6}
    role = make_plan(minilm, "role", budget=Budget.like_rank(16))  # 12 and 24 everywhere are 98.4 %: one layer takes one more
    assert role.rank_pattern == {r"encoder\.layer\.2\.output\.dense": 25, r"encoder\.layer\.\d+\.output\.dense": 24}


def test_role_gives_output_dense_twice_the_rank_of_attention(roberta):
    plan = make_plan(roberta, "role", budget=Budget.like_rank(16))
    frame = plan.frame(roberta)
    means = frame.groupby("role")["rank"].mean()
    assert plan.strategy == "role"
    assert means["mlp.down"] / means["attention.query"] == pytest.approx(2, rel=0.05)
    assert means["attention.value"] == pytest.approx(means["attention.query"], abs=0.5)


def spectra_of(checkpoint, decay):
    rng = np.random.default_rng(0)
    layers = {}
    for index, weight in enumerate(checkpoint.weights):
        values = np.exp(-decay(index) * np.arange(weight.full_rank)) * rng.uniform(0.5, 50)
        layers[weight.name] = layer_of(weight, np.sort(values)[::-1])
    return Spectra("made up", layers)


def layer_of(weight, values):
    return LayerSpectrum(weight, values, float(np.sum(np.square(values / values[0]))), 0.0)


def captured(spectra, ranks):
    total = 0.0
    for name, rank in ranks.items():
        energy = spectra.layers[name].singular_values ** 2
        total += energy[:rank].sum() / energy.sum()
    return total


def test_energy_captures_more_than_any_neighbouring_plan():
    checkpoint = inventory([(60, 40)] * 6)
    spectra = spectra_of(checkpoint, lambda index: 0.02 * (index + 1))
    for limit in (60, 300, 1500):
        plan = make_plan(checkpoint, "energy", budget=Budget.parameters(limit), spectra=spectra)
        own = captured(spectra, plan.ranks)
        assert ENOUGH * limit <= plan.trainable <= limit
        for give, take in itertools.permutations(plan.ranks, 2):
            other = dict(plan.ranks) | {give: plan.ranks[give] - 1, take: plan.ranks[take] + 1}
            if other[give] >= 1 and other[take] <= 40 and sum(rank**2 for rank in other.values()) <= plan.trainable:
                assert captured(spectra, other) <= own + 1e-12
        uniform = make_plan(checkpoint, "uniform", budget=Budget.parameters(limit))
        assert own >= captured(spectra, uniform.ranks)


def test_energy_on_real_spectra_says_how_little_it_gains(minilm):
    spectra = scan(minilm)
    plan = make_plan(minilm, "energy", budget=Budget.like_rank(16), spectra=spectra)
    uniform = make_plan(minilm, "uniform", budget=Budget.like_rank(16))
    means = [one.frame(minilm, spectra)["energy_at_rank"].mean() for one in (plan, uniform)]
    assert means[0] > means[1]
    assert f"Captures {100 * means[0]:.1f} %" in plan.notes[-1]
    assert f"capture {100 * means[1]:.1f} %" in plan.notes[-1]
    table = spectra.frame(plan).set_index("name").loc[list(plan.ranks), "energy_at_rank"]
    assert table.to_numpy() == pytest.approx(plan.frame(minilm, spectra)["energy_at_rank"].to_numpy(), rel=1e-9)


@pytest.fixture(scope="module")
def eight_largest(minilm):
    return scan(minilm, top=8, cache=False)


def test_a_plan_over_the_largest_values_alone_counts_the_energy_beyond_them(minilm, eight_largest):
    """A scan with --top knows the energy of the rest: the share inside the rank is of the whole, and unknown beyond the last."""
    whole = scan(minilm)
    plan = make_plan(minilm, "uniform", budget=Budget.like_rank(8))
    some = plan.frame(minilm, eight_largest)["energy_at_rank"]
    assert some.to_numpy() == pytest.approx(plan.frame(minilm, whole)["energy_at_rank"].to_numpy(), abs=1e-4)
    assert some.max() < 0.9
    deeper = plan.with_ranks({next(iter(plan.ranks)): 9}).frame(minilm, eight_largest)["energy_at_rank"]
    assert math.isnan(deeper.iloc[0])
    assert deeper.iloc[1:].to_numpy() == pytest.approx(some.iloc[1:].to_numpy())


def test_the_energy_strategy_says_where_the_scan_ends(minilm, eight_largest):
    with pytest.raises(PlanError, match=r"what more than rank 8 is worth in .* 8 of 384 singular values; scan the whole"):
        make_plan(minilm, "energy", budget=Budget.like_rank(16), spectra=eight_largest)
    limited = make_plan(minilm, "energy", budget=Budget.like_rank(4), spectra=eight_largest, max_rank=8)
    same = make_plan(minilm, "energy", budget=Budget.like_rank(4), spectra=scan(minilm), max_rank=8)
    assert limited.ranks == same.ranks
    assert "Captures" in limited.notes[-1]


def test_a_strategy_reads_what_the_scan_measured(minilm, monkeypatch):
    def score(layer, ranks):
        return layer.spectrum.metrics["stable_rank"] / (2 * ranks + 1)

    spectra = scan(minilm)
    own = Strategy("stable-rank", "By stable rank", "-", "public; uniform", score, needs_spectra=True)
    monkeypatch.setitem(STRATEGIES, own.name, own)
    ranks = make_plan(minilm, own.name, budget=Budget.like_rank(16), spectra=spectra).ranks
    measured = {name: spectra.layers[name].metrics["stable_rank"] for name in ranks}
    flattest, steepest = max(measured, key=measured.get), min(measured, key=measured.get)
    assert ranks[flattest] > ranks[steepest]


def test_energy_ignores_the_norm_of_a_layer():
    checkpoint = inventory([(30, 30)] * 4)
    spectra = spectra_of(checkpoint, lambda index: 0.1 * (index + 1))
    plan = make_plan(checkpoint, "energy", budget=Budget.parameters(150), spectra=spectra)
    loud = spectra.layers["layers.2.mlp.down_proj"]
    spectra = Spectra("made up", {**spectra.layers, loud.weight.name: layer_of(loud.weight, loud.singular_values * 1000)})
    assert make_plan(checkpoint, "energy", budget=Budget.parameters(150), spectra=spectra).ranks == plan.ranks


def test_limits_and_matrix_sizes_are_respected():
    checkpoint = inventory([(64, 8), (64, 64), (5, 64), (64, 64)])
    plan = make_plan(checkpoint, "uniform", budget=Budget.parameters(2_000), min_rank=2, max_rank=20)
    assert list(plan.ranks.values()) == [8, 20, 5, 20]
    assert plan.trainable == 889
    assert "out of reach" in plan.notes[0]
    everything = make_plan(checkpoint, "uniform", budget=Budget.parameters(10**9))
    assert list(everything.ranks.values()) == [8, 64, 5, 64]


def test_one_layer_cannot_always_use_95_percent():
    plan = make_plan(inventory([(64, 64)]), "uniform", budget=Budget.parameters(15))
    assert plan.trainable == 9
    assert "9 of 15" in plan.notes[0]


@pytest.mark.parametrize("strategy", ["uniform", "role"])
def test_a_budget_of_bytes_is_the_file_that_comes_out(roberta, strategy):
    plan = make_plan(roberta, strategy, budget=Budget.adapter_bytes(200_000))
    size = adapter_size(roberta, "lora-xs", plan=plan).file_bytes
    assert 0.95 * 200_000 <= size <= 200_000
    half = make_plan(roberta, strategy, budget=Budget.adapter_bytes(200_000, dtype="bfloat16"))
    assert half.trainable > 1.8 * plan.trainable
    assert adapter_size(roberta, "lora-xs", plan=half, dtype="bfloat16").file_bytes <= 200_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": Budget.like_rank(400)}, "Rank 400 is larger than the matrix"),
        ({"budget": Budget.parameters(23)}, "below rank 1 in each of the 24 layers"),
        ({"budget": Budget.parameters(90), "min_rank": 2}, "below rank 2 in each of the 24 layers"),
        ({"budget": Budget.like_rank(4), "min_rank": 385}, "Rank 385 is larger than the matrix"),
        ({"budget": Budget.like_rank(4), "min_rank": 5, "max_rank": 4}, "below the smallest"),
        ({"budget": Budget.like_rank(4), "min_rank": 0}, "at least 1"),
        ({"budget": Budget.like_rank(4), "strategy": "magic"}, "there are uniform, role, energy"),
        ({"budget": Budget.like_rank(4), "strategy": "energy"}, "needs the spectra"),
        ({"budget": Budget.like_rank(4), "strategy": "energy", "spectra": Spectra("made up", {})}, "hold nothing for"),
        ({"budget": Budget.like_rank(4), "alpha_over_r": 0.0}, "positive number"),
        ({"budget": Budget.adapter_bytes(100)}, "below the smallest adapter"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_sentence(minilm, arguments, message):
    with pytest.raises(PlanError, match=message) as caught:
        make_plan(minilm, **{"strategy": "uniform", **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [Budget.parameters, Budget.adapter_bytes, Budget.like_rank])
@pytest.mark.parametrize("count", [0, -3, 1.5, True, math.nan, math.inf])
def test_budgets_are_whole_and_positive(make, count):
    with pytest.raises(PlanError, match="whole number of at least 1"):
        make(count)


def test_every_strategy_says_what_it_rests_on():
    for name, strategy in STRATEGIES.items():
        assert strategy.name == name
        assert strategy.label
        assert strategy.summary
        assert "arXiv" in strategy.evidence or "public" in strategy.evidence
        assert "uniform" in strategy.evidence.lower()


def test_strategies_say_whether_they_read_spectra():
    assert {name: STRATEGIES[name].needs_spectra for name in ("role", "uniform", "energy")} == {
        "role": False,
        "uniform": False,
        "energy": True,
    }


# -- a plan that travels ------------------------------------------------------------------------------------------------------


def test_a_plan_of_another_model_is_refused(minilm, roberta):
    plan = make_plan(roberta, budget=Budget.like_rank(4))
    with pytest.raises(PlanError, match="was made for roberta-large"):
        plan.frame(minilm)


def test_where_roles_tell_no_layer_from_another_the_plan_says_so(roberta):
    for model, targets, said in (
        (open_model("gpt-3-175b"), "paper", "None of these layers is an MLP down projection"),
        (roberta, ["mlp.down"], "All of these layers are MLP down projections"),
    ):
        plan = make_plan(model, "role", budget=Budget.like_rank(16), targets=targets)
        assert len(set(plan.ranks.values())) == 1
        assert [note for note in plan.notes if note.startswith(said)]
