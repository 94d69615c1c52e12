"""Advice on rank and rate: which rates stay in, which rank is the smallest within the noise, what is said of it; one real race."""

from __future__ import annotations

import dataclasses
import shlex

import numpy as np
import pandas as pd
import pytest

from analyzers.compare import rank_advice
from analyzers.compare.rank_advice import AdviceSettings, RankAdvice, _better_half, _read, advise_rank
from analyzers.methods import METHODS
from loraxs_core.errors import PlanError, RunError, SettingsError


def results(scores, rate=0.01, validation=None, rank=4):
    validation = scores if validation is None else validation
    return pd.DataFrame(
        [
            {
                "state": "done",
                "seed": seed,
                "learning_rate": rate,
                "score": score,
                "validation_score": chosen,
                "metric": "accuracy",
            }
            | {"adapter_parameters": 36 * rank**2}
            for seed, (score, chosen) in enumerate(zip(scores, validation, strict=True))
        ]
    )


def advice(finals, head=(0.5, 0.51, 0.49), **changes):
    settings = AdviceSettings(model="made", ranks=tuple(finals), seeds=3, rates=(0.005, 0.01, 0.02), **changes)
    return _read(settings, finals, results(head), trials=9, root="nowhere")


def test_the_smallest_rank_within_the_noise_of_the_best():
    found = advice(
        {
            4: results([0.70, 0.71, 0.72]),
            8: results([0.79, 0.82, 0.80], rank=8),
            16: results([0.80, 0.81, 0.82], rank=16),
            32: results([0.79, 0.80, 0.82], rank=32),
        }
    )
    assert (found.best, found.smallest) == (16, 8)
    eight = found.points[1]
    differences = np.array([0.01, -0.01, 0.02])
    assert eight.behind == pytest.approx(differences.mean())
    assert eight.behind_low < 0 < eight.behind_high
    assert found.points[0].behind_low > 0
    assert found.sentence.startswith("Take rank 8 at learning rate 0.01: accuracy 0.803")
    assert "within the noise of the best, rank 16" in found.sentence
    assert "4 times fewer trained numbers" in found.sentence
    assert "tried; try" not in found.sentence
    assert found.to_dict()["sentence"] == found.sentence
    assert list(found.frame()["rank"]) == [4, 8, 16, 32]


def test_advice_is_kept_and_read_again(tmp_path, own_folders):
    found = advice({4: results([0.7, 0.71, 0.72]), 8: results([0.8, 0.82, 0.8], rank=8)})
    kept = dataclasses.replace(found, folder=str(tmp_path))
    kept.save()
    assert RankAdvice.load(tmp_path) == kept
    (tmp_path / "advice.json").write_text('{"points": 3}')
    with pytest.raises(RunError, match="holds no advice of this program"):
        RankAdvice.load(tmp_path)
    with pytest.raises(RunError, match="There is no advice in"):
        RankAdvice.load(tmp_path / "nowhere")


def test_rates_follow_the_kind_of_task(own_folders):
    encoder, decoder = AdviceSettings(model="minilm", task="stsb"), AdviceSettings(model="smollm2-135m", task="boolq")
    assert [rate / METHODS["lora-xs"].rate().value for rate in encoder.rates] == [0.5, 1, 2, 4]
    assert [rate / METHODS["lora-xs"].rate(causal=True).value for rate in decoder.rates] == [0.5, 1, 2, 4]
    assert encoder.folder != decoder.folder
    assert [len(sweep.trials()) for sweep in encoder.planned()] == [3, *[4, 2, 3] * 4], (
        "the head; four rates, two, one on all seeds"
    )


def test_the_command_and_the_code_ask_the_same_again(own_folders, monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from app.cli import app
    from app.reproduce import advice as spoken

    rows = [f"{'good' if index % 2 else 'bad'} word {index},{index % 2}" for index in range(60)]
    (tmp_path / "task.csv").write_text("said,kind\n" + "\n".join(rows) + "\n", encoding="utf-8")
    columns = {"text": "said", "label": "kind"}
    asked = AdviceSettings(model="minilm", task=f"csv:{tmp_path / 'task.csv'}", columns=columns, ranks=(2, 6), steps=9, seeds=4)
    taken = []

    class Taken(Exception):
        pass

    def take(settings, *others):
        taken.append(settings)
        raise Taken

    monkeypatch.setattr(rank_advice, "advise_rank", take)
    CliRunner().invoke(app, shlex.split(spoken.command(asked))[1:])
    with pytest.raises(Taken):
        exec(compile(spoken.python(asked), "snippet", "exec"), {})
    assert taken == [asked, asked]


def test_validation_chooses_and_the_test_split_is_reported():
    found = advice(
        {
            4: results([0.9, 0.9, 0.9], validation=[0.6, 0.6, 0.6]),
            8: results([0.8, 0.8, 0.8], validation=[0.7, 0.7, 0.7], rank=8),
        }
    )
    assert found.best == 8
    assert found.points[1].score == pytest.approx(0.8)
    assert found.smallest == 4  # ahead of the best on the test split


def test_a_rate_at_the_edge_and_a_rank_that_does_not_adapt_are_said():
    edge = advice({4: results([0.6, 0.61, 0.6]), 8: results([0.9, 0.91, 0.9], rate=0.02, rank=8)})
    assert "Take rank 8" in edge.sentence
    assert "every smaller rank tried is clearly behind" in edge.sentence
    assert "rate is the largest that was tried; try larger ones too" in edge.sentence
    flat = advice({4: results([0.5, 0.52, 0.48]), 8: results([0.5, 0.49, 0.52], rank=8)})
    assert flat.sentence.startswith("No rank clearly beats training the head alone")


def test_the_head_alone_is_compared_seed_by_seed():
    """Seeds that differ by more than the adapter gains hide nothing, and a head that is as uncertain as they are decides nothing."""
    seeds = np.array([0.60, 0.70, 0.80])
    ahead = advice({4: results(seeds + 0.01), 8: results(seeds + np.array([0.04, 0.05, 0.045]), rank=8)}, head=tuple(seeds))
    assert ahead.points[1].low < ahead.head[0]
    assert ahead.gain[0] == pytest.approx(0.045)
    assert ahead.adapts
    assert ahead.sentence.startswith("Take rank")
    chance = advice({4: results([0.70, 0.70, 0.70]), 8: results([0.71, 0.71, 0.71], rank=8)}, head=(0.60, 0.68, 0.82))
    assert chance.points[1].low > chance.head[0]
    assert not chance.adapts


def test_a_rank_larger_than_a_matrix_is_said_before_anything_is_trained(own_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(rank_advice, "run_sweep", lambda *_, **__: pytest.fail("something was trained"))
    with pytest.raises(PlanError, match="Rank 9999 is larger than the matrix"):
        advise_rank(AdviceSettings(model="minilm", ranks=(4, 9999)), tmp_path)


def test_a_head_that_failed_on_a_seed_is_said():
    settings = AdviceSettings(model="made", ranks=(4, 8), seeds=3, rates=(0.01,))
    finals = {4: results([0.7, 0.7, 0.7]), 8: results([0.8, 0.8, 0.8], rank=8)}
    with pytest.raises(SettingsError, match="head alone did not finish on all 3 seeds"):
        _read(settings, finals, results([0.5, 0.5, np.nan]), trials=9, root="nowhere")


def test_less_perplexity_is_better():
    def perplexities(*scores, rank=4):
        return results(list(scores), validation=[-score for score in scores], rank=rank).assign(metric="perplexity")

    finals = {4: perplexities(9.0, 9.1, 9.2), 8: perplexities(6.0, 6.1, 6.2, rank=8)}
    found = advice(finals, head=(12.0, 12.1, 11.9))
    assert found.smallest == 8
    assert found.points[0].behind == pytest.approx(3.0)
    assert found.sentence.startswith("Take rank 8")
    worse = advice(finals, head=(5.0, 5.1, 4.9))
    assert worse.sentence.startswith("No rank clearly beats")


def test_rates_are_halved_and_those_that_failed_go_first():
    tried = pd.DataFrame(
        [
            {"state": "done", "learning_rate": 0.01, "validation_score": 0.7},
            {"state": "failed", "learning_rate": 0.04, "validation_score": None},
            {"state": "done", "learning_rate": 0.02, "validation_score": 0.8},
        ]
    )
    assert _better_half(tried, (0.01, 0.02, 0.04)) == (0.01, 0.02)
    assert _better_half(tried, (0.01, 0.02)) == (0.02,)


def test_a_rank_that_no_seed_finished_is_named():
    failed = pd.DataFrame([{"state": "failed", "seed": 0, "learning_rate": 0.01, "score": None, "validation_score": None}])
    with pytest.raises(SettingsError, match="Rank 8 has no learning rate that finished"):
        advice({4: results([0.6, 0.6, 0.6]), 8: failed})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": (4,)}, "at least two ranks"),
        ({"ranks": (4, 0)}, "at least 1"),
        ({"rates": ()}, "at least one learning rate"),
        ({"rates": (-1,)}, "positive number"),
        ({"seeds": 1}, "at least 2 seeds"),
        ({"steps": 4}, "at least 8 steps"),
    ],
)
def test_what_cannot_be_raced_is_said_in_one_sentence(changes, message):
    with pytest.raises(SettingsError, match=message) as caught:
        AdviceSettings(model="minilm", **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_real_race_and_its_second_run_that_trains_nothing(minilm, tmp_path):
    lines = ["text,label"] + [f"{'good fine' if index % 2 else 'bad poor'} word {index},{index % 2}" for index in range(80)]
    (tmp_path / "task.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = AdviceSettings(
        model="minilm", task=f"csv:{tmp_path / 'task.csv'}", ranks=(2, 4), rates=(0.01, 0.05), steps=8, seeds=2, batch=8
    )
    found = advise_rank(settings, tmp_path / "out")
    assert [point.rank for point in found.points] == [2, 4]
    assert found.trials == 2 + 2 * (
        2 + 2
    )  # the head; a round of two rates; the better one on both seeds (quarter and half are one)
    assert all(point.trained == point.rank**2 * found.points[0].trained / 4 for point in found.points)
    again = advise_rank(settings, tmp_path / "out")
    assert again.points == found.points
