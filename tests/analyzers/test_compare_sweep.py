"""Sweeps in this process: settings, order, failures, resuming, and what the numbers say together."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analyzers.compare import RunFolder, SweepSettings, run_sweep
from analyzers.compare.summary import best_rate, paired_differences, pareto, summarise, t_interval
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.progress import Cancellation
from tests.analyzers.compare_helpers import sentiment_csv, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return str(tiny_model(folder / "model")), f"csv:{sentiment_csv(folder / 'film.csv')}"


def quick(place, **changes) -> SweepSettings:
    model, task = place
    chosen = {
        "methods": ("head-only", "lora-xs"),
        "rank": 4,
        "steps": 3,
        "batch": 8,
        "sequence": 16,
        "evaluations": 1,
        "device": "cpu",
    }
    return SweepSettings(model, task, **{**chosen, **changes})


def test_a_sweep_leaves_a_folder_that_tells_everything(place, tmp_path):
    seen = []
    run = run_sweep(quick(place, seeds=2), tmp_path / "run", seen.append)
    status = run.status()
    assert (status.state, status.fraction, status.trials_done, status.trials_total) == ("done", 1.0, 4, 4)
    frame = run.results()
    assert list(frame["seed"]) == [0, 0, 1, 1]
    assert list(frame["method"]) == ["head-only", "lora-xs"] * 2
    assert frame["score"].between(0, 1).all()
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    assert list(table.columns) == list(frame.columns)
    pd.testing.assert_frame_equal(table.dropna(axis=1), frame.dropna(axis=1), check_dtype=False)
    curves = run.metrics()
    assert set(curves["trial"]) == set(frame["trial"])
    assert list(curves[curves["trial"] == frame["trial"][0]]["step"]) == [1, 2, 3, 3]
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert SweepSettings.from_dict(config["settings"]) == quick(place, seeds=2)
    assert {"torch", "transformers", "peft"} <= set(config["software"])
    assert not (tmp_path / "run" / ".reserve").exists()
    summary = run.summary()
    assert set(summary["interval"]) == {"examples" if len(run.settings.seeds) == 1 else "seeds"}
    assert (summary["low"] <= summary["score"]).all()
    assert (summary["score"] <= summary["high"]).all()
    assert set(run.draws()) == set(summary["label"])


def test_the_same_seed_gives_the_same_score(place, tmp_path):
    first, second = (run_sweep(quick(place, steps=8), tmp_path / name).results() for name in ("a", "b"))
    assert list(first["score"]) == list(second["score"])
    assert list(first["test_loss"]) == pytest.approx(list(second["test_loss"]), rel=1e-6)


def test_peak_memory_does_not_grow_with_the_trials_before(place, tmp_path):
    peaks = run_sweep(quick(place, methods=("lora-xs",), seeds=4), tmp_path / "run").results()["peak_memory_bytes"]
    assert peaks.iloc[-1] < 1.05 * peaks.iloc[1]


def test_a_failing_method_leaves_the_others_alone_and_is_tried_again(place, tmp_path):
    settings = quick(place, methods=("lora-xs", "lora"), ranks={"lora-xs": 33, "lora": 4})
    run = run_sweep(settings, tmp_path / "run")
    assert run.status().state == "done"
    assert "1 of 2 trials failed" in run.status().message
    (failure,) = run.failures()
    assert failure["method"] == "lora-xs"
    assert "32, not 33" in failure["error"]
    assert list(run.results()["state"]) == ["failed", "done"]
    assert list(run.summary()["failed"]) == [1, 0]
    before = (run.trial_folder(run.results()["trial"][1]) / "result.json").stat().st_mtime_ns
    run_sweep(settings, tmp_path / "run")
    assert (run.trial_folder(run.results()["trial"][1]) / "result.json").stat().st_mtime_ns == before


def test_a_sweep_in_which_everything_fails_says_so(place, tmp_path):
    with pytest.raises(RunError, match=r"None of the 1 trials succeeded; the first said: .*not 40"):
        run_sweep(quick(place, methods=("lora-xs",), rank=40), tmp_path / "run")
    assert RunFolder(tmp_path / "run").status().state == "failed"


def test_a_cancelled_sweep_goes_on_where_it_stopped(place, tmp_path):
    asked = {"stop": False}

    def watch(progress):
        asked["stop"] = progress.message.startswith("LoRA-XS")

    with pytest.raises(Cancellation):
        run_sweep(quick(place, steps=30), tmp_path / "run", watch, cancelled=lambda: asked["stop"])
    run = RunFolder(tmp_path / "run")
    assert run.status().state == "cancelled"
    assert list(run.results()["method"]) == ["head-only"]
    stamp = (run.trial_folder(run.results()["trial"][0]) / "result.json").stat().st_mtime_ns
    run_sweep(quick(place, steps=30), tmp_path / "run")
    assert list(run.results()["method"]) == ["head-only", "lora-xs"]
    assert (run.trial_folder(run.results()["trial"][0]) / "result.json").stat().st_mtime_ns == stamp
    steps = run.metrics().query("method == 'lora-xs' and kind == 'train'")["step"]
    assert steps.is_unique  # the cut attempt is not shown


@pytest.mark.parametrize("signalled", [True, False])
def test_a_stop_is_a_stop_also_inside_a_library(place, tmp_path, monkeypatch, signalled):
    """The signal that ends a run may come anywhere, also where a library makes an error of its own of whatever goes wrong."""
    asked = []

    def library(*arguments, **options):
        asked.append(True)
        try:
            if signalled:
                raise Cancellation
            raise KeyError("the batch that was being made")
        except Exception as error:
            raise ValueError("cannot make a batch") from error

    monkeypatch.setattr("analyzers.compare.trial.run_trial", library)
    with pytest.raises(Cancellation):
        run_sweep(quick(place), tmp_path / "run", cancelled=lambda: not signalled and bool(asked))
    status = RunFolder(tmp_path / "run").status()
    assert (status.state, status.error) == ("cancelled", "")
    assert len(asked) == 1


def test_a_folder_with_something_else_in_it_is_left_alone(place, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        run_sweep(quick(place), tmp_path / "photos")
    RunFolder.create(quick(place), tmp_path / "run")
    with pytest.raises(RunError, match="holds a run with other settings"):
        run_sweep(quick(place, steps=9), tmp_path / "run")


def test_plans_are_variants_of_lora_xs(minilm):
    from analyzers.ranks import Budget, make_plan

    plans = {name: make_plan(minilm, name, budget=Budget.like_rank(4)) for name in ("uniform", "role")}
    settings = SweepSettings("minilm", methods=("head-only", "lora-xs"), seeds=2, plans=plans)
    assert [trial.variant for trial in settings.trials()][:3] == ["Head only", "LoRA-XS, uniform", "LoRA-XS, role"]
    assert len(settings.trials()) == 6
    again = SweepSettings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again == settings
    assert [trial.plan for trial in again.trials()] == [trial.plan for trial in settings.trials()]
    with pytest.raises(SettingsError, match="Plans are for LoRA-XS"):
        SweepSettings("minilm", methods=("lora",), plans=plans)


def test_each_method_has_its_own_rate_and_all_share_the_heads():
    settings = SweepSettings("minilm", learning_rates={"lora": [1e-3, 2e-3]}, head_learning_rate=5e-3)
    rates = {(trial.method, trial.learning_rate): trial.head_learning_rate for trial in settings.trials()}
    assert {("lora", 1e-3), ("lora", 2e-3), ("head-only", 5e-3)} <= set(rates)
    assert set(rates.values()) == {5e-3}
    assert len({trial.id for trial in settings.trials()}) == 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": ("lora", "adapterfusion")}, r"Unknown method 'adapterfusion'; there are .*lora-xs"),
        ({"methods": ()}, "at least one method"),
        ({"steps": 0}, "number of steps must be a whole number of at least 1, not 0"),
        ({"steps": -3}, "number of steps"),
        ({"batch": 0}, "The batch"),
        ({"seeds": 0}, "number of seeds"),
        ({"seeds": [-1]}, "seed"),
        ({"rank": 0}, "The rank"),
        ({"learning_rates": {"lora": -1.0}}, "learning rate of lora must be a positive number"),
        ({"learning_rates": {"lora": []}}, "at least one learning rate"),
        ({"head_learning_rate": float("nan")}, "learning rate of the head"),
        ({"threads": 0}, "number of threads"),
    ],
)
def test_settings_that_cannot_be_run_say_why(changes, sentence):
    with pytest.raises(SettingsError, match=sentence):
        SweepSettings("minilm", **changes)


def test_unknown_task_and_weightless_model_are_refused_before_a_folder_is_made(tmp_path):
    from loraxs_core.errors import WeightsMissing

    with pytest.raises(SettingsError, match="Unknown task 'wikitext'"):
        run_sweep(SweepSettings("minilm", "wikitext"), tmp_path / "run")
    with pytest.raises(WeightsMissing, match="llama-3-8b is an architecture without weights"):
        run_sweep(SweepSettings("llama-3-8b"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def records(**rows) -> pd.DataFrame:
    """Records of trials: label -> [(seed, rate, validation, test)]."""
    common = dict.fromkeys(
        ("adapter_bytes", "file_bytes", "seconds", "train_seconds", "svd_seconds", "svd_share", "peak_memory_bytes"), 1.0
    )
    return pd.DataFrame(
        [
            {"method": "lora", "label": label, "seed": seed, "learning_rate": rate, "validation_score": validation, "score": test,
             "state": "done", "metric": "pearson", "adapter_parameters": 10, "head_parameters": 1, **common}
            for label, trials in rows.items()
            for seed, rate, validation, test in trials
        ]
    )  # fmt: skip


def test_intervals_are_students():
    from scipy.stats import ttest_1samp

    values = np.array([0.81, 0.84, 0.79, 0.86])
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((values.mean(), expected.low, expected.high))
    assert t_interval([0.5]) == (0.5, 0.5, 0.5)
    assert np.isnan(t_interval([])[0])


def test_intervals_stay_within_what_the_metric_can_be():
    row = summarise(records(A=[(0, 1e-3, 0.5, 0.97), (1, 1e-3, 0.5, 0.89)])).iloc[0]
    assert row["score"] == pytest.approx(0.93)
    assert row["low"] == pytest.approx(0.93 - 12.706 * 0.04, abs=1e-4)  # t of one degree of freedom
    assert row["high"] == 1.0
    accuracy = records(A=[(0, 1e-3, 0.5, 0.05), (1, 1e-3, 0.5, 0.15)]).assign(metric="accuracy")
    assert summarise(accuracy).iloc[0]["low"] == 0.0
    wide = records(A=[(0, 1e-3, 0.5, -0.9), (1, 1e-3, 0.5, 0.9)], B=[(0, 1e-3, 0.5, 0.9), (1, 1e-3, 0.5, -0.9)])
    difference = paired_differences(wide, "A").iloc[0]
    assert (difference["low"], difference["high"]) == (-2.0, 2.0)


def test_a_seed_without_a_score_is_no_seed():
    """A collapsed run predicts one number: its correlation is undefined, and it tells nothing about the spread of the others."""
    row = summarise(records(A=[(0, 1e-3, 0.5, 0.8), (1, 1e-3, 0.5, None)])).iloc[0]
    assert (row["seeds"], row["failed"], row["low"], row["high"]) == (1, 1, 0.8, 0.8)
    # nor does the other seed's luck choose the rate
    assert best_rate(records(A=[(0, 1e-3, 0.7, 0.8), (1, 1e-3, 0.7, 0.8), (0, 1e-2, 0.9, 0.9), (1, 1e-2, None, None)])) == 1e-3


def test_trials_that_would_share_a_folder_are_refused(minilm):
    from analyzers.ranks import Budget, make_plan

    plan = make_plan(minilm, "uniform", budget=Budget.like_rank(4))
    with pytest.raises(SettingsError, match=r"The plans 'role 4' and 'role\.4' differ in punctuation alone"):
        SweepSettings("minilm", methods=("lora-xs",), plans={"role 4": plan, "role.4": plan})
    with pytest.raises(SettingsError, match=r"Two learning rates of lora are 0\.001 when rounded"):
        SweepSettings("minilm", methods=("lora",), learning_rates={"lora": [1e-3, 1.0000001e-3]})


def test_a_plan_of_another_model_is_refused_before_anything_is_trained(place, minilm, tmp_path):
    from analyzers.ranks import Budget, make_plan
    from loraxs_core.errors import PlanError

    plan = make_plan(minilm, "uniform", budget=Budget.like_rank(4))
    with pytest.raises(PlanError, match="The plan was made for minilm"):
        run_sweep(quick(place, methods=("head-only", "lora-xs"), plans={"mine": plan}), tmp_path / "run")
    assert not (tmp_path / "run" / "trials").exists()


def test_the_rate_is_chosen_on_validation_never_on_test():
    frame = records(A=[(0, 1e-3, 0.7, 0.9), (0, 1e-2, 0.8, 0.6), (1, 1e-3, 0.7, 0.9), (1, 1e-2, 0.8, 0.5)])
    row = summarise(frame).iloc[0]
    assert row["learning_rate"] == 1e-2
    assert row["score"] == pytest.approx(0.55)
    assert row["seeds"] == 2
    assert row["pareto"]
    # a rate that has finished one seed of two does not win by luck
    assert best_rate(records(A=[(0, 1e-3, 0.7, 0.9), (0, 1e-2, 0.99, 0.6), (1, 1e-3, 0.7, 0.9)])) == 1e-3


def test_paired_differences_take_the_seed_out():
    from scipy.stats import ttest_rel

    base, other = [0.60, 0.75, 0.90], [0.62, 0.78, 0.91]
    frame = records(
        uniform=[(seed, 1e-3, 0.5, value) for seed, value in enumerate(base)],
        role=[(seed, 1e-3, 0.5, value) for seed, value in enumerate(other)],
        lonely=[(7, 1e-3, 0.5, 0.4)],
    )
    table = paired_differences(frame, "uniform").set_index("label")
    expected = ttest_rel(other, base).confidence_interval(0.95)
    assert table.loc["role", ["difference", "low", "high"]].tolist() == pytest.approx([0.02, expected.low, expected.high])
    assert table.loc["lonely", "seeds"] == 0
    assert np.isnan(table.loc["lonely", "difference"])
    with pytest.raises(SettingsError, match="No finished trial is labelled 'energy'; there are uniform, role, lonely"):
        paired_differences(frame, "energy")


def test_pareto_front_keeps_ties_and_drops_the_beaten():
    frame = pd.DataFrame({"parameters": [10, 10, 20, 30, 40], "score": [0.5, 0.6, 0.55, 0.7, np.nan]})
    assert list(pareto(frame)) == [False, True, False, True, False]
