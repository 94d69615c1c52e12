"""What a handful of seeds can say, against SciPy, against tables, and by simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyzers.compare.statistics import holm, paired, seeds_needed, verdict
from analyzers.compare.summary import paired_differences, pareto
from loraxs_core.errors import SettingsError


def results(scores: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        {"state": "done", "label": label, "method": label, "seed": seed, "learning_rate": 1e-3, "metric": "accuracy",
         "score": score, "validation_score": score}
        for label, values in scores.items() for seed, score in enumerate(values)
    )  # fmt: skip


def test_paired_is_scipys_t_test_with_the_signs_counted():
    values = [0.01, -0.004, 0.02, 0.007, 0.0]
    found, theirs = paired(values), stats.ttest_1samp(values, 0.0)
    interval = theirs.confidence_interval(0.95)
    assert (found["p"], found["low"], found["high"]) == pytest.approx((theirs.pvalue, interval.low, interval.high))
    assert (found["above"], found["below"], found["seeds"]) == (3, 1, 5)
    assert np.isnan(paired([0.01, 0.01])["p"])  # no spread is no certainty
    assert paired([0.0, 0.0])["p"] == 1.0
    assert np.isnan(paired([0.01])["p"])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    adjusted = holm([float("nan"), 0.02])
    assert np.isnan(adjusted[0])
    assert adjusted[1] == 0.02  # a comparison of one seed is no test


def test_so_many_seeds_really_see_a_point():
    """Simulated: the number is the smallest with which at least four of five experiments reject."""
    spread = np.array([-1.0, 1.0]) / np.sqrt(2)  # standard deviation 1
    needed = int(seeds_needed(0.02 * spread, size=0.01))
    generator = np.random.default_rng(0)

    def power(seeds: int) -> float:
        return float((stats.ttest_1samp(generator.normal(0.01, 0.02, (40_000, seeds)), 0.0, axis=1).pvalue < 0.05).mean())

    assert power(needed) == pytest.approx(0.8, abs=0.02)
    assert power(needed - 2) < 0.79
    assert needed == 34  # as G*Power gives for d = 0.5
    assert np.isnan(seeds_needed([0.01, 0.01]))
    assert np.isnan(seeds_needed([0.01]))
    assert seeds_needed([-50.0, 50.0]) == float("inf")


@pytest.mark.parametrize("spread", [0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003])
def test_seeds_that_hardly_scatter_need_as_few_as_simulated(spread):
    """Where SciPy's noncentral t gives NaN: the search took that for enough."""
    needed = int(seeds_needed(spread / np.sqrt(2) * np.array([-1.0, 1.0])))
    generator = np.random.default_rng(0)

    def power(seeds: int) -> float:
        return float((stats.ttest_1samp(generator.normal(0.01, spread, (20_000, seeds)), 0.0, axis=1).pvalue < 0.05).mean())

    assert power(needed) > 0.79
    assert needed == 2 or power(needed - 1) < 0.81


def test_seeds_that_differ_by_the_same_are_told_without_an_interval():
    """Two seeds of 24 test examples are a step apart now and then: that they are the same step is no certainty."""
    row = paired_differences(results({"base": [12 / 24, 15 / 24], "one": [13 / 24, 16 / 24]}), "base").iloc[0]
    assert verdict(row) == (
        "one is above base by 0.0417 with each of 2 seeds; that all agree to the last digit gives no interval."
    )
    assert np.isnan(row["p_holm"])
    same = paired_differences(results({"base": [0.5, 0.6], "one": [0.5, 0.6]}), "base").iloc[0]
    assert verdict(same).startswith("No difference shown")


def test_a_verdict_says_no_more_than_its_interval():
    table = paired_differences(
        results(
            {
                "base": [0.80, 0.81, 0.79],
                "same": [0.81, 0.80, 0.79],
                "better": [0.85, 0.861, 0.841],
                "once": [0.9, np.nan, np.nan],
            }
        ),
        "base",
    ).set_index("label", drop=False)
    said = {label: verdict(row) for label, row in table.iterrows()}
    assert said["same"].startswith("No difference shown between same and base (-0.0")
    assert said["better"].startswith("better is above base by 0.0")
    assert "cannot tell that from chance" in said["once"]
    assert table.loc["better", "p_holm"] == pytest.approx(2 * table.loc["better", "p"])
    chance = verdict({**table.loc["better"], "p_holm": 0.2})
    assert "may be chance (Holm, p = 0.2)" in chance


def test_the_front_of_any_two():
    frame = pd.DataFrame(
        {"score": [0.9, 0.8, 0.9, np.nan], "peak_memory_bytes": [10, 5, 12, 1], "tokens_per_second": [1.0, 3.0, 2.0, 9.0]}
    )
    assert list(pareto(frame, "peak_memory_bytes", "score")) == [True, True, False, False]
    assert list(pareto(frame, "tokens_per_second", "score")) == [False, True, True, False]
    assert list(pareto(frame, "peak_memory_bytes", "tokens_per_second")) == [False, False, False, True]
    with pytest.raises(SettingsError, match="no column 'colour'"):
        pareto(frame, "colour")


def test_seeds_that_all_agree_do_not_tell_how_many_are_needed():
    from app.results_table import _needed

    assert "do not tell" in _needed(paired([0.02, 0.02, 0.02]))
    assert "would show with" in _needed(paired([0.01, 0.02, 0.03]))
