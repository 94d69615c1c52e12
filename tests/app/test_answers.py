"""Every page answers first: one large line, above everything else, in words that follow the data."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from analyzers.ranks import Budget, make_plan, uniform_baseline
from app import answers
from loraxs_core.checkpoint import Checkpoint
from tests.app.pages import healthy, page


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model", r"holds [\d,.]+ parameters in \d+ matrices; 12 of them take adapters"),
        ("spectra", r"For 90 % of its energy a layer needs \d+ to \d+ % of its directions, half of the layers at most \d+ %"),
        ("plan", r"Rank 16 in 8 layers: the uniform baseline, 2,048 trained numbers"),
        ("cost", r"\\\$[\d.]+ a month for 1,000,000 adapters with LoRA-XS \([\d.]+ .B\); Full fine-tune \\\$[\d.]+, LoRA"),
    ],
)
def test_a_page_says_its_answer_above_everything_else(scanned, name, says):
    test = healthy(page(scanned, name))
    assert len(test.header) == 1
    assert re.search(says, test.header[0].value), test.header[0].value
    kinds = [element.type for element in test.main]
    assert "header" in kinds[: kinds.index("subheader")] if "subheader" in kinds else True
    assert kinds.index("header") < min(
        kinds.index(kind) for kind in ("metric", "arrow_data_frame", "plotly_chart") if kind in kinds
    )


def test_by_role_where_no_layer_has_the_role(tiny_gpt2):
    """The plan of a model without such layers is uniform, and the words say so."""
    model = Checkpoint.open(tiny_gpt2)
    made = make_plan(model, "role", budget=Budget.like_rank(4), targets="attention.qkv")
    uniform = uniform_baseline(model, made)
    said = answers.plan(made, made.frame(model), uniform, uniform.frame(model))
    assert said == "Rank 4 in 2 layers: no different from uniform ranks, 32 trained numbers, 100.0 % of the budget"


def test_a_plan_by_hand_and_the_uniform_plan(tiny_bert):
    model = Checkpoint.open(tiny_bert)
    uniform = make_plan(model, "uniform", budget=Budget.like_rank(4))
    assert answers.plan(uniform, uniform.frame(model), None, None).startswith("Rank 4 in 8 layers: the uniform baseline, 128")
    first = next(iter(uniform.ranks))
    edited = uniform.with_ranks({first: 2})
    said = answers.plan(edited, edited.frame(model), uniform, uniform.frame(model))
    assert said.startswith("Rank 2 to 4 for query") or "2 to 4 for query" in said
    assert said.endswith("where uniform is 4")


@pytest.mark.parametrize(
    ("scores", "seeds", "says"),
    [
        (
            [(0.9, 0.88, 0.92), (0.8, 0.78, 0.82)],
            3,
            "A leads with accuracy 0.900 (0.880 to 0.920), above the interval of every other",
        ),
        ([(0.9, 0.85, 0.95), (0.88, 0.84, 0.92), (0.5, 0.4, 0.6)], 3, "Cannot tell A and B apart: A leads with accuracy 0.900"),
        ([(0.9, 0.9, 0.9), (0.88, 0.88, 0.88)], 1, "A leads with accuracy 0.900, B has 0.880; one seed cannot tell how much"),
        ([(0.9, 0.9, 0.9)], 1, "A has accuracy 0.900, with nothing beside it"),
    ],
)
def test_the_winner_or_why_nobody_can_tell(scores, seeds, says):
    rows = [dict(zip(("score", "low", "high"), row, strict=True)) for row in scores]
    done = pd.DataFrame(rows).assign(label=list("ABC")[: len(rows)], seeds=seeds, interval="seeds" if seeds > 1 else None)
    assert answers.race(done, "accuracy").startswith(says)


@pytest.mark.parametrize(
    ("interval", "says"),
    [("examples", "Its interval is that of the test examples"), (None, "this run kept no predictions: run it again")],
)
def test_what_one_seed_of_one_method_can_tell(interval, says):
    row = {"label": "A", "score": 0.9, "low": 0.85, "high": 0.95, "seeds": 1, "parameters": 10, "adapter_bytes": 40}
    done = pd.DataFrame([row]).assign(interval=interval)
    assert says in answers.best_here(done, "accuracy", None)


def test_of_perplexities_the_lowest_wins():
    rows = {"label": ["A", "B"], "score": [9.0, 12.0], "low": [8.0, 11.0], "high": [10.0, 13.0]}
    done = pd.DataFrame(rows).assign(metric="perplexity", seeds=3, interval="seeds")
    assert answers.race(done, "perplexity") == (
        "A leads with perplexity 9.000 (8.000 to 10.000), below the interval of every other"
    )
    assert answers.race(done.assign(high=[11.5, 13.0]), "perplexity").startswith("Cannot tell A and B apart")


def test_one_seed_is_judged_on_the_same_examples():
    rows = {
        "label": ["A", "B"],
        "score": [0.9, 0.88],
        "low": [0.86, 0.84],
        "high": [0.94, 0.92],
        "seeds": 1,
        "interval": "examples",
    }
    behind = pd.DataFrame({"label": ["B"], "against": "A", "difference": -0.02, "low": -0.03, "high": -0.01})
    done = pd.DataFrame(rows)
    line = answers.race(done, "accuracy", behind)
    assert line.startswith("A leads with accuracy 0.900 (0.860 to 0.940), ahead of every other on the same examples")
    assert answers.race(done, "accuracy", behind.assign(high=0.01)).startswith("Cannot tell A and B apart on these examples")


def test_seeds_that_all_differ_by_the_same_tell_nobody_apart():
    """Two seeds, each two test examples of 24 better: no spread was seen, so no interval leaves out zero."""
    done = pd.DataFrame(
        {"label": ["A", "B"], "score": [0.60, 0.52], "low": [0.5, 0.4], "high": [0.7, 0.6], "seeds": 2, "parameters": 1,
         "adapter_bytes": 4, "metric": "accuracy"}
    )  # fmt: skip
    apart = pd.DataFrame({"label": ["B"], "difference": [-2 / 24], "low": [-2 / 24], "high": [-2 / 24]})
    assert answers.race(done, "accuracy", apart).startswith("Cannot tell A and B apart seed by seed")
    assert "One without width shows nothing" in answers.best_here(done, "accuracy", apart)
    sure = apart.assign(low=-0.10, high=-0.06)
    assert "ahead of every other seed by seed" in answers.race(done, "accuracy", sure)
