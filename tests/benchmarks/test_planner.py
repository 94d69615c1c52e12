"""The evidence for rank plans: its statistics on made-up trials, that what is shown follows from the trials kept, and its arms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from analyzers.plans import PlanSettings
from analyzers.ranks import STRATEGIES, Budget, evidence, make_plan
from benchmarks.kept_trials import read
from benchmarks.planner import report
from benchmarks.planner.__main__ import RESULTS, lacking
from benchmarks.planner.programme import STUDIES, Study
from benchmarks.planner.statistics import comparisons, holm, interval, verdict
from benchmarks.planner.tasks import replaced, shortened, swapped, tensed


def trials(gains, *, seeds=5, task="wordorder", rates=(0.01, 0.02), head=0.55, noise=0.004, rank=4):
    """Trials whose arm is ahead of uniform by gains[arm] (of 1), or by gains[arm][rate], with the same noise of the seed in all arms."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        shared = 0.65 + 0.02 * rng.normal()
        common = {"model": "minilm", "task": task, "rank": rank, "seed": seed}
        found.append(common | {"arm": "head", "rate": 0.0, "score": head + 0.01 * rng.normal(), "validation_score": head})
        for (arm, gain), rate in itertools.product({"uniform": 0.0, **gains}.items(), rates):
            own = gain[rate] if isinstance(gain, dict) else gain
            score = shared + own + (0.01 if rate == rates[-1] else 0) + noise * rng.normal()
            found.append(common | {"arm": arm, "rate": rate, "score": score, "validation_score": score})
    return found


def only(found, arm="role"):
    return next(one for one in found if one.arm == arm)


def test_a_clear_gain_on_every_rate_is_supported():
    found = comparisons(trials({"role": 0.04, "energy": 0.0}))
    one = only(found)
    assert one.tuned == pytest.approx(4, abs=0.8)
    assert (one.rate, one.uniform_rate) == (0.02, 0.02)
    assert one.wide_low < one.low < one.tuned < one.high < one.wide_high
    assert one.wide_low > 0
    assert (one.better, one.seeds, one.family) == (5, 5, 2)
    assert one.head_low > 0
    word, line = verdict("role", found)
    assert word == "supported"
    assert "beats uniform" in line
    assert verdict("energy", found)[0] == "nothing shown"
    assert verdict("fisher", found)[0] == "not measured"


def test_a_gain_that_comes_from_uniforms_unlucky_rate_is_no_support():
    """Tuned +4 where only the best rate gains: at equal rates the interval reaches zero, so it stays a lead."""
    found = comparisons(trials({"role": {0.01: -0.05, 0.02: 0.04}}))
    assert only(found).tuned > 3
    assert only(found).equal_low < 0
    assert verdict("role", found)[0] == "lead"


def test_a_gain_that_the_permuted_control_shares_is_no_support():
    found = comparisons(trials({"role": 0.04, "role:permuted": 0.035}))
    assert verdict("role", found)[0] == "lead"


def test_a_loss_is_said():
    word, line = verdict("role", comparisons(trials({"role": -0.04})))
    assert word == "loses"
    assert "loses to uniform" in line


def test_a_gain_on_one_task_and_a_loss_on_another_is_no_support():
    mixed = trials({"role": 0.04}) + trials({"role": -0.04}, task="stsb")
    assert verdict("role", comparisons(mixed))[0] == "nothing shown"


def test_no_verdict_without_seeds_or_where_the_adapter_does_not_beat_the_head():
    assert verdict("role", comparisons(trials({"role": 0.04}, seeds=4))) == ("no verdict", "No verdict: 4 of 5 seeds so far.")
    word, line = verdict("role", comparisons(trials({"role": 0.04}, head=0.66)))
    assert word == "no verdict"
    assert "does not clearly beat the head" in line


def test_a_seed_counts_once_all_its_rates_have_run():
    records = trials({"role": 0.04})
    records = [one for one in records if not (one["arm"] == "role" and one["seed"] == 3 and one["rate"] == 0.02)]
    assert only(comparisons(records)).seeds == 4
    missing_rate = [one for one in records if not (one["arm"] == "role" and one["rate"] == 0.02)]
    assert not [one for one in comparisons(missing_rate) if one.arm == "role"]


def test_corrections():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    mean, low, high, p = interval(np.array([1.0, 2.0, 3.0]))
    assert (mean, low, high) == pytest.approx((2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    assert p == pytest.approx(0.0741799, rel=1e-5)


def test_what_is_shown_follows_from_the_trials_that_are_kept():
    found = comparisons([one for file in sorted(RESULTS.glob("*.jsonl")) for one in read(file)])
    again = "write it again: python -m benchmarks.planner.report"
    assert report.EVIDENCE.read_text(encoding="utf-8") == report.evidence(found), again
    assert report.tables(found) in report.PAGE.read_text(encoding="utf-8"), again
    assert report.PLOT.read_text(encoding="utf-8") == report.plot(found), again


def test_the_default_strategy_is_what_the_evidence_supports(minilm):
    assert PlanSettings().strategy == evidence.recommended()
    assert evidence.measured("one of mine") == evidence.NONE
    for name in STRATEGIES:
        plan_line = evidence.measured(name).line
        assert plan_line
    plan = make_plan(minilm, "role", budget=Budget.like_rank(4))
    assert plan.evidence == f"{STRATEGIES['role'].evidence} {evidence.measured('role').line}"


def test_kept_trials_are_paired_at_equal_budgets():
    """Σ r² of every trial within 1 % of the budget, and no score without its validation score."""
    for file in RESULTS.glob("*.jsonl"):
        for one in read(file):
            if one["arm"] != "head":
                budget = len(one["ranks"]) * one["rank"] ** 2
                assert 0.99 * budget <= one["trained"] == sum(rank**2 for rank in one["ranks"]) <= budget
            assert 0 <= one["validation_score"] <= 1


def test_what_is_done_is_not_done_again(tmp_path):
    study = Study("minilm", "wordorder", 4, (0.01,), ("uniform",), (0, 1))
    assert lacking(study, tmp_path) == [("head", 0.0, 0), ("uniform", 0.01, 0), ("head", 0.0, 1), ("uniform", 0.01, 1)]
    line = '{"arm": "uniform", "rate": 0.01, "seed": 0, "score": 0.5}\n{"arm": "head", "ra'
    (tmp_path / f"{study.name}.jsonl").write_text(line, encoding="utf-8")
    assert lacking(study, tmp_path) == [("head", 0.0, 0), ("head", 0.0, 1), ("uniform", 0.01, 1)]
    assert len({study.name for study in STUDIES}) > 6


def test_probes_change_what_they_say():
    rng = np.random.default_rng(0)
    sentences = ["a man is playing a flute", "the dog has a very red ball", "a cat sleeps on my bed", "words words words words"]
    made = swapped(sentences, rng)
    assert [example.label for example in made[:3]] == [0, 1, 0]
    assert made[0].text == sentences[0]
    assert sorted(made[1].text.split()) == sorted(sentences[1].split())
    assert made[1].text != sentences[1]
    assert made[3].label == 0  # nothing to swap
    odd = replaced(sentences, rng)
    assert [len(example.text.split()) for example in odd] == [6, 7, 6, 4]
    assert odd[0].text == sentences[0]
    changed = [(old, new) for old, new in zip(sentences[1].split(), odd[1].text.split(), strict=True) if old != new]
    assert len(changed) == odd[1].label == 1
    assert changed[0][1] in " ".join(sentences).split()
    short = shortened(sentences, rng)
    assert [example.label for example in short] == [0, 1, 0]
    left = short[1].text.split()
    assert len(left) == 6
    assert left in [[*words[:at], *words[at + 1 :]] for words in [sentences[1].split()] for at in range(1, 6)]
    past = tensed(sentences, rng)
    assert [(example.text, example.label) for example in past] == [(sentences[0], 0), ("the dog had a very red ball", 1)]


@pytest.mark.slow
def test_one_trial_of_every_arm(monkeypatch):
    """The real model, two steps: every plan trains what it says, and the base is as before afterwards."""
    import torch

    from benchmarks.planner.arms import Arms
    from benchmarks.planner.programme import ALL
    from benchmarks.planner.trial import Bench, Setup

    bench = Bench(Setup("minilm", "wordorder", steps=8, validation=16, test=16))
    arms = Arms(bench, 4)
    before = {name: value.clone() for name, value in bench.prepared.model.state_dict().items() if "head" not in name}
    for arm in ALL:
        plan = arms.plan(arm, 0)
        found = bench.run(plan, 0.01, 0)
        assert found["trained"] == plan.trainable
        assert 0.99 * 576 <= plan.trainable <= 576
    after = bench.prepared.model.state_dict()
    assert before.keys() == {name for name in after if "head" not in name}
    assert all(torch.equal(before[name], after[name]) for name in before)
    permuted = arms.plan("role:permuted", 0)
    assert sorted(permuted.ranks.values()) == sorted(arms.plan("role", 0).ranks.values())
    assert permuted.ranks != arms.plan("role", 0).ranks
