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
from benchmarks.planner.statistics import CONFIRMATION, EXPLORATION, comparisons, head_gains, holm, interval
from benchmarks.planner.tasks import TASKS, replaced, shortened, swapped, tensed
from benchmarks.planner.verdicts import verdict


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


def only(found, arm="role", stage=EXPLORATION):
    return next(one for one in found if (one.arm, one.stage) == (arm, stage))


def differences(records, arm, rate, other, seeds):
    """Points by which `arm` at `rate` is ahead of uniform at `other` on word order, seed by seed."""
    score = {(one["arm"], one["rate"], one["seed"]): one["score"] for one in records if one["task"] == "wordorder"}
    return np.array([100 * (score[arm, rate, seed] - score["uniform", other, seed]) for seed in seeds])


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
    word, line = verdict("role", comparisons(mixed))
    assert word == "mixed"
    assert "below zero on STS-B" in line


def test_no_verdict_without_seeds_or_where_the_adapter_does_not_beat_the_head():
    assert verdict("role", comparisons(trials({"role": 0.04}, seeds=4))) == ("no verdict", "No verdict: 4 of 5 seeds so far.")
    word, line = verdict("role", comparisons(trials({"role": 0.04}, head=0.66)))
    assert word == "no verdict"
    assert "does not clearly beat the head" in line


def test_each_stage_is_corrected_over_its_own_family():
    """Against scipy's paired t-test and intervals, and Holm's correction by its definition. Controls and what has seeds missing widen
    nothing."""
    from scipy import stats

    gains = {"role": 0.012, "fisher": 0.02, "energy": 0.001, "role:permuted": 0.0, "role:inverted": -0.01}
    records = trials(gains, seeds=15, noise=0.008) + trials({"role": 0.05}, seeds=3, task="stsb")
    found = comparisons(records)
    for stage, seeds, names in (
        (EXPLORATION, range(5), ["role", "fisher", "energy"]),
        (CONFIRMATION, range(5, 15), ["role", "fisher"]),
    ):
        own = [only(found, name, stage) for name in names]
        assert {one.arm for one in found if one.counted and one.stage == stage} == set(names)
        assert {one.family for one in own} == {len(names)}
        assert [one.seeds for one in own] == [len(seeds)] * len(names)
        values = [differences(records, one.arm, one.rate, one.uniform_rate, seeds) for one in own]
        p = [stats.ttest_1samp(one, 0).pvalue for one in values]
        assert [one.p for one in own] == pytest.approx(p, rel=1e-9)
        for one, difference in zip(own, values, strict=True):
            test = stats.ttest_1samp(difference, 0)
            assert (one.low, one.high) == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-9)
            wide = test.confidence_interval(1 - 0.05 / len(names))
            assert (one.wide_low, one.wide_high) == pytest.approx(tuple(wide), rel=1e-9)
        assert [one.holm for one in own] == pytest.approx(closed_testing(p), rel=1e-9)


def closed_testing(p):
    """Holm's p-values by their definition: an intersection of hypotheses is tested by Bonferroni, and one is as doubtful as the most
    doubtful intersection that it is in."""
    among = [set(some) for size in range(1, len(p) + 1) for some in itertools.combinations(range(len(p)), size)]
    return [max(min(1, len(some) * min(p[one] for one in some)) for some in among if index in some) for index in range(len(p))]


def test_fresh_seeds_choose_no_rate():
    """Exploration prefers the higher rate; on fresh seeds the lower one is better, and the comparison stays where it was."""
    records = trials({"role": 0.02}, seeds=15)
    for one in records:
        if one["seed"] >= 5 and one["rate"] == 0.01 and one["arm"] != "head":
            one["score"] += 0.2
            one["validation_score"] += 0.2
    fresh = only(comparisons(records), stage=CONFIRMATION)
    assert (fresh.rate, fresh.uniform_rate) == (0.02, 0.02)
    assert fresh.tuned == pytest.approx(differences(records, "role", 0.02, 0.02, range(5, 15)).mean())


OTHERS = dict.fromkeys(("energy", "fisher", "gradient", "warm-up", "blend", "activation"), 0.0)


def staged(first, fresh, **more):
    """Five seeds with the gains `first`, ten with `fresh`."""
    early = [one for one in trials(first, seeds=15, **more) if one["seed"] < 5]
    return early + [one for one in trials(fresh, seeds=15, **more) if one["seed"] >= 5]


def test_leads_alone_are_tried_again_and_a_lead_that_fails_says_so():
    records = staged({"role": 0.02, **OTHERS}, {"role": 0.0, **dict.fromkeys(OTHERS, 0.05)}, noise=0.009)
    found = comparisons(records)
    assert [one.arm for one in found if one.stage == CONFIRMATION] == ["role"]
    word, line = verdict("role", found)
    assert word == "not confirmed"
    assert line.startswith("A lead that fresh seeds did not confirm")
    assert "10 of 10 fresh seeds" in line
    assert verdict("energy", found)[0] == "nothing shown"
    half = comparisons([one for one in records if one["seed"] < 10])
    assert verdict("role", half)[0] == "lead"
    assert "5 of 10 fresh seeds" in verdict("role", half)[1]
    assert not only(half, stage=CONFIRMATION).counted


def test_a_lead_that_fresh_seeds_bear_out_is_supported():
    """Too weak for the correction of the exploration, clear on ten fresh seeds."""
    records = staged({"role": 0.02, **OTHERS}, {"role": 0.02}, noise=0.009)
    found = comparisons(records)
    assert only(found).lead
    assert only(found).wide_low < 0
    assert only(found, stage=CONFIRMATION).wide_low > 0
    assert verdict("role", found)[0] == "supported"
    shared = comparisons(
        staged({"role": 0.02, "role:permuted": 0.0, **OTHERS}, {"role": 0.02, "role:permuted": 0.02}, noise=0.009)
    )
    word, line = verdict("role", shared)
    assert word == "not confirmed"
    assert "the same ranks in other layers gain as well" in line


def test_variants_are_told_beside_their_strategy():
    line = verdict("role", comparisons(trials({"role": 0.0, "role:x3": 0.02, "role:permuted": 0.0})))[1]
    assert "Variants, uncorrected, on Word order at r=4: x3 +2." in line
    assert "permuted" not in line


def test_a_gain_on_one_of_three_tasks_is_no_support():
    records = trials({"role": 0.04}) + trials({"role": 0.0}, task="halves") + trials({"role": 0.0}, task="agreement")
    word, line = verdict("role", comparisons(records))
    assert word == "lead"
    assert "above zero after correction on 1 of 3 tasks that need adaptation (Word order)" in line


def test_every_task_that_the_programme_names_is_there():
    assert {study.task for study in STUDIES} <= set(TASKS)
    assert {"mrpc", "rte", "sst2", "stsb", "boolq", "arc-easy", "wordorder", "tense"} <= {study.task for study in STUDIES}


def test_mrpc_is_the_same_rows_wherever_it_comes_from(monkeypatch):
    """A half of GLUE's validation split is trained on, whether the whole training split is at hand or that split alone, cut up."""
    from benchmarks.planner import tasks

    rows = tuple(tasks.Example(f"text {number}", number % 2, f"pair {number % 7}") for number in range(408))
    other = tuple(tasks.Example(f"other {number}", 0, "pair") for number in range(3301))
    sources = [
        tasks.Splits(train=other, validation=other[:367], test=rows),
        tasks.Splits(train=rows[100:305], validation=rows[305:346], test=rows[:100] + rows[346:]),
    ]
    taken = iter(sources)
    monkeypatch.setattr(tasks, "open_task", lambda name: type("Source", (), {"read": lambda *_: next(taken)})())
    first, second = (tasks._few_pairs("mrpc")() for _ in sources)
    assert first == second
    assert [len(part) for part in (first.train, first.validation, first.test)] == [204, 42, 162]
    assert {*first.train, *first.validation, *first.test} == set(rows)


def test_the_gain_over_the_head_is_told_of_studies_without_plans_too():
    (one,) = head_gains(trials({}))
    (other,) = head_gains(trials({"role": 0.04}))
    assert one.seeds == 5
    assert one.low < one.gain < one.high
    assert one.gain == pytest.approx(11, abs=2), "0.65 and 0.01 for the better rate, against 0.55"
    assert other.gain == pytest.approx(only(comparisons(trials({"role": 0.04}))).head_gain)


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
    records = [one for file in sorted(RESULTS.glob("*.jsonl")) for one in read(file)]
    found = comparisons(records)
    again = "write it again: python -m benchmarks.planner.report"
    assert report.EVIDENCE.read_text(encoding="utf-8") == report.evidence(found), again
    assert report.written(found, head_gains(records)) in report.PAGE.read_text(encoding="utf-8"), again
    for name, drawn in report.PLOTS.items():
        assert (report.IMAGES / name).read_text(encoding="utf-8") == drawn(found), again


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


def test_a_decoder_trains_the_plan_and_its_own_head(tmp_path):
    from benchmarks.planner.arms import Arms
    from benchmarks.planner.trial import Bench, Setup
    from tests.analyzers.compare_helpers import tiny_decoder

    bench = Bench(Setup(str(tiny_decoder(tmp_path)), "wordorder", steps=8, validation=16, test=16))
    head = bench.prepared.model.get_submodule(bench.prepared.head[0])
    arms = Arms(bench, 4)
    for arm in ("uniform", "gradient", "head"):
        plan = arms.plan(arm, 0)
        found = bench.run(plan, 0.01, 0)
        assert found["trained"] == (plan.trainable if plan else 0)
        assert bench.prepared.model.get_submodule(bench.prepared.head[0]) is head
