"""Learning rates tuned on examples that are set aside: what halving costs, what it chooses, what a kill in between changes: nothing."""

from __future__ import annotations

import json
import math

import pytest

from analyzers.compare import SweepSettings, run_sweep, tuning
from analyzers.compare.halving import Halving, Tuning, candidates
from analyzers.compare.tasks import open_task
from analyzers.compare.trial_settings import TrialSettings
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.progress import Cancellation
from tests.analyzers.compare_helpers import sentiment_csv, tiny_model

RATES = (1e-4, 3e-3, 3e-2, 1e6)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    return str(tiny_model(folder / "model")), f"csv:{sentiment_csv(folder / 'film.csv')}"


def quick(place, **changes) -> SweepSettings:
    model, task = place
    chosen = {"steps": 60, "batch": 8, "sequence": 16, "evaluations": 1, "device": "cpu", "threads": 1, "tune_lr": True}
    return SweepSettings(model, task, **{"methods": ("lora",), "learning_rates": {"lora": RATES}, **chosen, **changes})


def trial(**changes) -> TrialSettings:
    given = {"learning_rate": 1e-3, "head_learning_rate": 1e-3, "steps": 200, "batch": 32, "sequence": 128, "evaluations": 5}
    return TrialSettings("lora", 0, **{**given, **changes})


@pytest.mark.parametrize(("steps", "rates"), [(48, 2), (60, 3), (60, 4), (200, 8), (1000, 8), (1000, 3)])
@pytest.mark.parametrize("splits", [(5749, 1500, 1379), (160, 20, 20), (400_000, 1000, 0)])
def test_all_rates_together_cost_less_than_one_trial(steps, rates, splits):
    chosen = trial(steps=steps, validation_examples=512)
    plan = Halving.of(chosen, [10.0**-power for power in range(rates)], *splits)
    assert plan.cost(chosen) <= chosen.cost(*splits[1:])
    assert plan.steps <= steps
    assert plan.counts[0] == rates
    assert plan.counts[-1] == 2
    assert list(plan.ends) == sorted(set(plan.ends))
    assert 8 <= plan.held <= min(256, splits[0] // 5)


def test_eight_rates_around_the_default_or_four_where_there_are_few_steps():
    assert candidates(1e-2) == (0.000625, 0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
    assert candidates(1e-2, 4) == (0.000625, 0.0025, 0.01, 0.04)
    many = Halving.around(trial(learning_rate=1e-2), 5749, 1500, 1379)
    assert (many.rates, many.counts) == (candidates(1e-2), (8, 4, 2))
    few = Halving.around(trial(learning_rate=1e-2, steps=60), 5749, 1500, 1379)
    assert (few.rates, few.counts) == (candidates(1e-2, 4), (4, 2))
    for plan in (many, few):
        assert plan.ends[0] >= math.ceil(0.06 * plan.ends[-1]) + 3, (
            "the rate is near zero while it warms up: no round ends there"
        )


def test_too_little_data_and_too_few_steps_are_said_in_a_sentence(place, tmp_path):
    with pytest.raises(SettingsError, match=r"set aside, and 30 are too few for that; give rates with --learning-rate"):
        Halving.of(trial(), candidates(1e-2), 30, 10, 10)
    with pytest.raises(SettingsError, match=r"8 learning rates are tuned .* 60 steps are too few"):
        Halving.of(trial(steps=60), candidates(1e-2), 1000, 10, 10)
    with pytest.raises(SettingsError, match="steps are too few"):
        run_sweep(quick(place, steps=5), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_half_goes_on_and_a_rate_that_diverged_does_not():
    known = Tuning("lora_r8", "LoRA", "lora", 0, (1.0, 2.0, 3.0, 4.0, 5.0), (1, 2, 3), 16, 100)
    for rate, score in zip(known.rates, (0.5, 0.7, None, 0.7, 0.6), strict=True):
        known = known.with_score(rate, score, 1.0, 0.1)
    assert known.alive(1) == (2.0, 4.0, 5.0)
    for rate, score, loss in ((2.0, 0.8, 0.5), (4.0, 0.8, 0.4), (5.0, 0.9, 2.0)):
        known = known.with_score(rate, score, loss, 0.1)
    assert known.alive(2) == (4.0, 5.0)  # of two alike the one of less loss
    known = known.with_score(4.0, 0.8, 0.4, 0.1).with_score(5.0, None, None, 0.1)
    assert known.best() == 4.0


def test_what_is_set_aside_is_neither_trained_on_nor_reported(place):
    splits = open_task(place[1]).read()
    own = tuning.set_aside(splits, 20)
    assert len(own.validation) == 20
    assert sorted([*own.train, *own.validation], key=repr) == sorted(splits.train, key=repr)
    assert tuning.set_aside(splits, 20) == own


@pytest.fixture(scope="module")
def tuned(place, tmp_path_factory):
    return run_sweep(quick(place, seeds=2), tmp_path_factory.mktemp("tuned") / "run")


def test_the_trials_of_every_seed_take_the_rate_that_was_found(tuned):
    (known,) = tuned.tunings()
    assert known.rates == RATES
    assert known.scores[1e6][0] is None, "it diverged at once"
    assert [len(known.scores[rate]) for rate in RATES].count(2) == 2
    assert known.chosen == known.best() in RATES[:3]
    assert set(tuned.results()["learning_rate"]) == {known.chosen}
    assert list(tuned.results()["seed"]) == [0, 1]
    assert tuned.status().trials_total == 2
    assert not [path for path in tuned.tuning_folder(known.variant).iterdir() if path.is_dir()]
    assert set(tuned.metrics()["trial"]) == set(tuned.results()["trial"]), "no curve is mixed with those of the tuning"
    assert (
        f"learning rate {known.chosen:g}, the best of 4 from 0.0001 to 1e+06 on {known.held} training examples"
        in known.sentence
    )
    again = Tuning.read(tuned.tuning_folder(known.variant))
    assert again == known


def cut_off(settings, folder, at):
    """Stops the sweep at the `at`-th thing that it says."""
    said = []

    def stop():
        said.append(1)
        return len(said) >= at

    with pytest.raises(Cancellation):
        run_sweep(settings, folder, cancelled=stop)


@pytest.mark.parametrize("at", [12, 45, 70])
def test_a_tuning_that_was_cut_off_ends_as_one_that_was_not(at, place, tuned, tmp_path):
    settings = quick(place, seeds=2)
    cut_off(settings, tmp_path / "run", at)
    run = run_sweep(settings, tmp_path / "run")
    (whole,), (again,) = tuned.tunings(), run.tunings()
    assert (again.scores, again.chosen) == (whole.scores, whole.chosen)
    assert list(run.results()["score"]) == list(tuned.results()["score"])


def test_a_method_whose_rates_all_diverge_fails_with_the_reason_and_the_others_go_on(place, tmp_path):
    settings = quick(place, methods=("lora", "head-only"), learning_rates={"lora": (1e6, 1e7), "head-only": (1e-2,)})
    run = run_sweep(settings, tmp_path / "run")
    assert run.status().state == "done"
    (failure,) = run.failures()
    assert failure["method"] == "lora"
    assert "with every one of the 2 tried, 1e+06 to 1e+07, it diverged" in failure["error"]
    assert list(run.results()["state"]) == ["failed", "done"]
    assert run.results()["learning_rate"][1] == 1e-2, "a single rate is taken as it is"
    with pytest.raises(RunError, match="None of the 1 trials succeeded; the first said: LoRA has no learning rate"):
        run_sweep(quick(place, learning_rates={"lora": (1e6, 1e7)}), tmp_path / "alone")


def test_a_loss_above_guessing_after_a_few_steps_is_no_divergence(place, tmp_path, monkeypatch):
    """A sentence encoder's begins above twice that of guessing; every rate but the largest was taken for one that diverged."""
    monkeypatch.setattr("analyzers.compare.trial.DIVERGED_LOSS", 0.0)
    run = run_sweep(quick(place, learning_rates={"lora": (3e-3, 3e-2)}), tmp_path / "run")
    assert all(score is not None for scores in run.tunings()[0].scores.values() for score in scores)
    assert run.tunings()[0].chosen is not None
    assert any("diverged" in remark for remark in run.remarks())


def test_a_rate_at_the_edge_is_remarked_on(tuned):
    known = Tuning("lora_r8", "LoRA", "lora", 0, (1e-3, 1e-2), (4,), 16, 100, "accuracy", {}, {}, 1.0, 1e-2)
    assert "it is the largest that was tried, so a better one may lie beyond" in known.sentence
    assert any("set aside" in remark for remark in tuned.remarks()) == tuned.tunings()[0].at_edge


@pytest.mark.parametrize(
    "change", [{"scores": {"9": [1.0]}}, {"rates": "x"}, {"chosen": 7.0}, {"rounds": 1}, {"scores": None}, {"losses": {}}]
)
def test_a_damaged_record_is_not_believed(change, tuned, tmp_path):
    known = tuned.tunings()[0]
    known.write(tmp_path)
    document = json.loads((tmp_path / "tuning.json").read_text())
    (tmp_path / "tuning.json").write_text(json.dumps({**document, **change}))
    assert Tuning.read(tmp_path) is None
    assert Tuning.read(tmp_path / "elsewhere") is None
