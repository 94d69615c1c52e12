"""A plan of ranks as a file and as a table: kept unchanged, edited, and refused in a sentence where it is not one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from analyzers.ranks import Budget, RankPlan, make_plan
from analyzers.spectra import Spectra
from loraxs_core.errors import PlanError
from tests.analyzers.test_ranks import layer_of


def test_saved_and_loaded_unchanged(minilm, tmp_path):
    plan = make_plan(minilm, budget=Budget.like_rank(12), alpha_over_r=2.0)
    assert RankPlan.load(plan.save(tmp_path / "plan.json")) == plan
    assert list(RankPlan.load(tmp_path / "plan.json").ranks) == list(plan.ranks)


@pytest.mark.parametrize("targets", ["query", [], [3], [""], {"query": 1}, None, ["nothing.of.it"], ["query", "uery"]])
def test_targets_that_name_no_layer_are_refused(minilm, tmp_path, targets):
    path = tmp_path / "plan.json"
    good = make_plan(minilm, "uniform", budget=Budget.like_rank(3)).to_dict()
    path.write_text(json.dumps(good | {"targets": targets}))
    with pytest.raises(PlanError, match=r"the wrong kind .*target"):
        RankPlan.load(path)


@pytest.mark.parametrize("field", ["alpha_over_r", "budget", "trainable", "version", "rank"])
@pytest.mark.parametrize("number", ["9" * 400, "1e400", "-" + "9" * 400, "9" * 5000])
def test_numbers_beyond_any_are_refused_in_one_short_sentence(minilm, tmp_path, field, number):
    path = tmp_path / "plan.json"
    good = make_plan(minilm, "uniform", budget=Budget.like_rank(3)).to_dict()
    first = next(iter(good["ranks"]))
    damaged = good | ({"ranks": good["ranks"] | {first: "HERE"}} if field == "rank" else {field: "HERE"})
    path.write_text(json.dumps(damaged).replace('"HERE"', number))
    with pytest.raises(PlanError) as caught:
        RankPlan.load(path)
    assert len(str(caught.value)) < 250 + len(str(path))


def test_a_plan_nested_deeply_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(PlanError, match="not valid JSON"):
        RankPlan.load(path)


def test_a_damaged_plan_is_refused_in_one_sentence(minilm, tmp_path):
    good = make_plan(minilm, "uniform", budget=Budget.like_rank(3)).to_dict()
    first = next(iter(good["ranks"]))
    damages = {
        "is not a rank plan": {"format": "other"},
        "of version 99": {"version": 99},
        "larger than the matrix": {"ranks": good["ranks"] | {first: 500}},
        "whole number of at least 1": {"ranks": good["ranks"] | {first: 0}},
        "only one of rank and shape": {"ranks": good["ranks"] | {"nowhere": 3}},
        "add up to 216": {"trainable": 5},
        "wrong kind": {"shapes": 7},
        "positive number": {"alpha_over_r": -1},
    }
    path = tmp_path / "plan.json"
    for message, damage in damages.items():
        path.write_text(json.dumps(good | damage))
        with pytest.raises(PlanError, match=message) as caught:
            RankPlan.load(path)
        assert "\n" not in str(caught.value)
    for missing in ("ranks", "targets", "model"):
        path.write_text(json.dumps({key: value for key, value in good.items() if key != missing}))
        with pytest.raises(PlanError, match=f"lacks '{missing}'"):
            RankPlan.load(path)
    path.write_text("{")
    with pytest.raises(PlanError, match="not valid JSON"):
        RankPlan.load(path)
    with pytest.raises(PlanError, match="Cannot read the plan"):
        RankPlan.load(tmp_path / "none.json")


def test_edits_and_differences(minilm):
    plan = make_plan(minilm, "uniform", budget=Budget.like_rank(4))
    name = "encoder.layer.3.output.dense"
    edited = plan.with_ranks({name: 9})
    assert edited.ranks[name] == 9
    assert edited.trainable == plan.trainable - 16 + 81
    assert not edited.within_budget
    assert edited.strategy == "uniform (edited)"
    assert edited.with_ranks({name: 8}).strategy == "uniform (edited)"
    change = plan.diff(edited)
    assert change.to_dict("records") == [
        {"name": name, "role": "mlp.down", "rank_before": 4, "rank_after": 9, "rank_change": 5, "trainable_change": 65}
    ]
    assert plan.diff(plan).empty
    with pytest.raises(PlanError, match="larger than the matrix"):
        plan.with_ranks({name: 385})
    with pytest.raises(PlanError, match="no layer 'head'"):
        plan.with_ranks({"head": 3})


def test_the_table_of_a_plan(minilm):
    plan = make_plan(minilm, budget=Budget.like_rank(8), alpha_over_r=0.5)
    spectra = Spectra("made up", {weight.name: layer_of(weight, np.ones(weight.full_rank)) for weight in minilm.linear})
    frame = plan.frame(minilm, spectra)
    assert frame["trainable"].sum() == plan.trainable
    assert (frame["alpha"] == frame["rank"] / 2).all()
    assert frame["energy_at_rank"].to_numpy() == pytest.approx(frame["rank"].to_numpy() / 384)
    assert frame.loc[3, ["name", "role", "layer", "out", "in"]].tolist() == [
        "encoder.layer.0.output.dense",
        "mlp.down",
        0,
        384,
        1536,
    ]
    assert "energy_at_rank" not in plan.frame()
