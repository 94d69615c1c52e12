"""The bootstrap over test examples: intervals of one seed, differences on the same examples, the line of what is no chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analyzers.compare.paired import (
    FILE,
    Predictions,
    _scores,
    differences,
    interval,
    load_predictions,
    resampled,
    save_predictions,
    score_interval,
    separated_front,
)
from analyzers.compare.tasks import METRICS
from loraxs_core.errors import RunError


def binary(count: int, right: float, seed: int) -> Predictions:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count).astype(float)
    return Predictions(np.where(random.random(count) < right, labels, 1 - labels), labels)


@pytest.mark.parametrize(("kind", "metric"), [("classification", "accuracy"), ("regression", "pearson")])
def test_the_fast_way_gives_what_the_metric_gives(kind, metric):
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, 50).astype(float) if metric == "accuracy" else random.normal(size=50)
    one = Predictions(np.where(random.random(50) < 0.6, labels, 1.0), labels)
    counts = random.multinomial(50, np.full(50, 1 / 50), size=20)
    compute = METRICS[kind][metric].compute
    slow = [compute(np.repeat(one.predicted, row), np.repeat(labels, row)) for row in counts]
    np.testing.assert_allclose(_scores(metric, counts, one), slow, rtol=1e-10)


def test_two_hundred_examples_leave_a_correlation_of_seven_tenths_seven_hundredths_uncertain():
    random = np.random.default_rng(3)
    labels = random.normal(size=200)
    predicted = 0.7 * labels + np.sqrt(1 - 0.49) * random.normal(size=200)
    low, high = interval(resampled({"one": Predictions(predicted, labels)}, "pearson")["one"])
    fisher = np.tanh(np.arctanh(np.corrcoef(predicted, labels)[0, 1]) + np.array([-1.96, 1.96]) / np.sqrt(197))
    np.testing.assert_allclose([low, high], fisher, atol=0.02)
    assert 0.10 < high - low < 0.20


def test_a_difference_on_the_same_examples_is_surer_than_two_scores():
    one = binary(400, 0.8, 0)
    better = one.predicted.copy()
    wrong = np.flatnonzero(better != one.labels)[:20]  # the same answers, but for twenty that are right now
    better[wrong] = one.labels[wrong]
    draws = resampled({"one": one, "better": Predictions(better, one.labels)}, "accuracy")
    row = differences(draws, {"one": 0.8, "better": 0.85}, "one").iloc[0]
    assert row["low"] > 0  # apart, though
    assert interval(draws["one"])[1] > interval(draws["better"])[0]  # their intervals are not


def test_other_examples_cannot_be_paired():
    with pytest.raises(RunError, match="different examples"):
        resampled({"one": binary(30, 0.8, 0), "two": binary(30, 0.8, 1)}, "accuracy")


def test_the_front_goes_through_what_is_no_chance():
    summary = pd.DataFrame(
        {
            "label": ["head", "small", "middle", "large"],
            "parameters": [0, 10, 100, 1000],
            "score": [0.50, 0.70, 0.71, 0.90],
            "low": [0.45, 0.65, 0.66, 0.87],
            "high": [0.55, 0.75, 0.76, 0.93],
            "seeds": 1,
        }
    )
    assert separated_front(summary, {}) == ["head", "small", "large"]
    draws = {"small": np.full(100, 0.70), "middle": np.full(100, 0.71), "large": np.full(100, 0.90), "head": np.full(100, 0.5)}
    assert separated_front(summary, draws) == ["head", "small", "middle", "large"]  # the same examples say more
    lower = summary.assign(score=1 - summary["score"], low=1 - summary["high"], high=1 - summary["low"])
    assert separated_front(lower, {}, lower=True) == ["head", "small", "large"]


def test_what_a_trial_predicted_is_kept_and_a_damaged_file_is_none(tmp_path):
    labels = np.array([0, 1, 1])
    save_predictions(tmp_path, "classification", np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]]), labels)
    found = load_predictions(tmp_path)
    np.testing.assert_array_equal(found.predicted, [0, 1, 0])
    np.testing.assert_array_equal(found.labels, labels)
    (tmp_path / FILE).write_bytes(b"{")
    assert load_predictions(tmp_path) is None
    assert load_predictions(tmp_path / "nowhere") is None


def test_predictions_that_do_not_give_the_score_are_left_out(tmp_path):
    """One bit of a prediction changed: no interval of other numbers."""
    from analyzers.compare.paired import FILE, resampled_files, save_predictions

    labels = np.arange(30.0)
    predicted = labels + np.sin(labels)
    score = float(np.corrcoef(predicted, labels)[0, 1])
    save_predictions(tmp_path, "regression", predicted, labels)
    assert list(resampled_files((("a", tmp_path, 0, score),), "pearson")) == ["a"]
    path = tmp_path / FILE
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x40
    path.write_bytes(content)
    assert resampled_files((("a", tmp_path, 1, score),), "pearson") == {}


@pytest.mark.parametrize(("right", "count"), [(0, 4), (4, 4), (0, 400), (3, 4)])
def test_none_right_of_four_is_no_certainty(right, count):
    from scipy.stats import binomtest

    labels = np.ones(count)
    one = Predictions(np.arange(count) < right, labels)
    draws = resampled({"one": one}, "exact_match", draws=200)["one"]
    found = score_interval(draws, "exact_match", count)
    if right in (0, count):
        exact = binomtest(right, count).proportion_ci(0.95, method="exact")
        assert found == pytest.approx((exact.low, exact.high))
    else:
        assert found == interval(draws)
