"""Compare: what it costs before Start, other runs beside one, filters and deletion, any two figures, ablations, the plan's race."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess

import pandas as pd
import pytest

import analyzers.compare
from analyzers.compare import RunFolder, SweepSettings
from analyzers.compare.forecast import forecast, measurement, measurements, step_seconds
from analyzers.compare.fronts import front
from analyzers.compare.overlays import metrics_of, summaries_of
from analyzers.methods import METHODS
from analyzers.plans import Budget
from analyzers.ranks import make_plan
from app.reproduce import sweeps
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import RunError
from tests.app.conftest import finished_run
from tests.app.pages import go, healthy, page, texts

pytestmark = pytest.mark.usefixtures("fresh_page")


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "my films.csv"
    file.write_text("id,review,stars\n" + "".join(f"{n},film number {n} was,{'good' if n % 2 else 'bad'}\n" for n in range(60)))
    return file


OWN = {"peft_type": "LORA", "r": 4, "target_modules": ["query"]}
FORMS = {
    "plain": {},
    "a search": {"learning_rates": {"lora": (5e-4, 1.5e-3), "vera": 0.01}, "seeds": 3, "evaluations": 2, "test_examples": 9},
    "ranks": {"ranks": {"lora": 3, "vera": 17, "lora-xs": 5}, "steps": 7, "batch": 5, "sequence": 24, "validation_examples": None},
    "ablations": {"ablate": ("basis", "sigma", "rank"), "methods": ("lora-xs",), "ranks": {"lora-xs": 6}},
    "own configuration": {"methods": ("lora", "it's mine"), "configs": {"it's mine": OWN}, "learning_rates": {"it's mine": 3e-4}},
    "tracker, tuned": {"report_to": ("tensorboard", "mlflow"), "tune_lr": True, "targets": "all-linear"},
    "processes": {"processes": 2, "batch": 32},
}  # fmt: skip


def parsed(command: str, folder, monkeypatch) -> SweepSettings:
    """What the real command makes of the text that the page shows."""
    from typer.testing import CliRunner

    from app.cli import app

    *before, line = command.splitlines()
    monkeypatch.chdir(folder)
    for made in before:
        if made.startswith("printf"):
            subprocess.run(made, shell=True, check=True, cwd=folder)
        else:
            assert CliRunner().invoke(app, shlex.split(made)[1:]).exit_code == 0, made
    seen = []

    class Stopped(Exception):
        pass

    def start(settings, out):
        seen.append(settings)
        raise Stopped

    monkeypatch.setattr(SweepSettings, "check", lambda self: analyzers.compare.open_task("stsb"))
    monkeypatch.setattr(analyzers.compare, "start_sweep", start)
    result = CliRunner().invoke(app, [*shlex.split(line)[1:], "--detach"])
    assert isinstance(result.exception, Stopped), (result.output, result.exception)
    return seen[0]


@pytest.mark.parametrize("form", FORMS)
def test_the_command_on_show_is_the_comparison(form, tiny_bert, data, tmp_path, monkeypatch):
    settings = SweepSettings(
        str(tiny_bert), f"data:{data}", columns={"text": "review", "label": "stars"}, data=str(tmp_path / "a b"), **FORMS[form]
    )
    found = parsed(sweeps.command(settings, Checkpoint.open(tiny_bert)), tmp_path, monkeypatch)
    assert found.trials() == settings.trials()
    differing = {name for name, value in settings.to_dict().items() if value != found.to_dict()[name]}
    assert differing <= {"rank", "ranks"}, "which the trials have told"


def test_forms_with_ablations_and_trackers_show_their_command(tiny_bert, tmp_path, monkeypatch):
    chosen = {"ablate": ["basis", "rank"], "report-to": ["mlflow"], "tune-lr": True, "compare-rank-lora": 4}
    test = healthy(page(tiny_bert, "compare", **chosen))
    found = parsed(test.code[0].value, tmp_path, monkeypatch)
    assert (found.ablate, found.report_to, found.tune_lr, found.ranks["lora"]) == (("basis", "rank"), ("mlflow",), True, 4)
    assert f"{len(found.trials())} trials of 100 steps" in texts(test)


def test_settings_with_ablations_go_back_into_the_form(tiny_bert):
    settings = SweepSettings(str(tiny_bert), methods=("lora-xs",), ablate=("sigma",), tune_lr=True, report_to=("wandb",))
    RunFolder.create(SweepSettings(str(tiny_bert), methods=("lora-xs",), ablate=("sigma",), tune_lr=True))
    test = page(tiny_bert, "compare")
    healthy(test.button(key="run-again").click().run())
    assert test.multiselect(key="ablate").value == ["sigma"]
    assert test.toggle(key="tune-lr").value
    assert settings.ablate == ("sigma",)


def test_a_device_chosen_elsewhere_is_not_dropped_without_a_word(tiny_bert):
    RunFolder.create(SweepSettings(str(tiny_bert), device="cpu"))
    test = page(tiny_bert, "compare")
    test.button(key="run-again").click().run()
    assert "a device chosen for it" in test.error[0].value


def test_the_plan_in_use_is_raced_against_uniform_in_one_click(tiny_bert):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    test.selectbox(key="strategy").set_value("role").run()
    test.button(key="use").click().run()
    healthy(test.button(key="race").click().run())
    command = healthy(go(test, "compare")).code[0].value
    assert "--methods head-only,lora-xs --seeds 5" in command
    assert command.count("--plan ") == 2
    assert "15 trials" in texts(test)


def test_a_race_of_a_plan_is_told_against_uniform_ranks(tiny_bert):
    checkpoint = Checkpoint.open(tiny_bert)
    plans = {f"{name} plan": make_plan(checkpoint, name, budget=Budget.like_rank(4)) for name in ("role", "uniform")}
    finished_run(SweepSettings(str(tiny_bert), methods=("head-only", "lora-xs"), plans=plans, seeds=2, steps=4))
    test = page(tiny_bert, "compare")
    assert test.selectbox(key="against").value == "LoRA-XS, uniform plan"
    assert test.selectbox(key="against").options[1:] == ["Head only", "LoRA-XS, role plan"]


def points(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["kind", "step", "seconds"])


def test_a_step_is_measured_without_the_first_and_without_evaluations():
    curve = points(("train", 1, 9.0), ("train", 2, 10.0), ("eval", 2, 60.0), ("train", 4, 62.0), ("train", 6, 64.0))
    assert step_seconds(curve) == pytest.approx(1.0)
    assert step_seconds(points(("train", 1, 9.0))) is None


def test_a_forecast_goes_by_trials_of_this_machine_and_says_what_it_never_saw(run):
    known = run.settings
    longer = SweepSettings(known.model, methods=("head-only", "lora", "vera"), seeds=2, steps=400)
    seen = forecast(longer)
    assert seen.trials == 6
    assert seen.guessed == (METHODS["vera"].label,)
    assert seen.seconds > 6 * 400 * 0.9, "a step of these curves takes a second"
    assert forecast(SweepSettings(known.model, batch=7)).seconds is None, "another batch takes another time"
    assert measurements(longer) == []
    small = measurement(longer)
    assert (small.steps, small.seed_count, small.evaluations) == (8, 1, 1)


def test_a_forecast_goes_by_runs_of_this_code_where_there_are_some(run):
    def at(step_seconds: float, code: str | None = None) -> RunFolder:
        other = RunFolder(shutil.copytree(run.path, run.path.with_name(f"{run.name}-{step_seconds}-{code}")))
        curves = other.path / "metrics.jsonl"
        lines = [json.loads(line) for line in curves.read_text().splitlines()]
        for line in lines:
            if "seconds" in line:
                line["seconds"] *= step_seconds
        curves.write_text("".join(json.dumps(line) + "\n" for line in lines))
        config = json.loads(other.config_path.read_text())
        config["software"]["code"] = code or config["software"]["code"]
        other.config_path.write_text(json.dumps(config))
        return RunFolder(other.path)

    asked = dataclasses.replace(run.settings, steps=1000, seeds=1)
    new, old = at(1.0), at(3.0, "before")
    mine = forecast(asked, [new]).seconds
    assert forecast(asked, [old]).seconds > 2 * mine, "an earlier version's is better than none"
    assert forecast(asked, [old, new]).seconds == pytest.approx(mine, rel=0.05)


def test_the_head_alone_of_a_sentence_encoder_is_evaluated_at_the_price_of_once(run):
    asked = dataclasses.replace(run.settings, methods=("head-only",), seeds=1, evaluations=50)
    each = forecast(asked, [run]).seconds
    for trial in run.trials():
        file = run.trial_folder(trial.id) / "result.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "evaluates_once": trial.method == "head-only"}))
    again = RunFolder(shutil.copytree(run.path, run.path.with_name(f"{run.name}-once")))
    assert forecast(asked, [again]).seconds < each / 5


def test_the_cost_stands_beside_start(tiny_bert, run):
    said = texts(healthy(page(tiny_bert, "compare", methods=["head-only", "lora"])))
    assert "2 trials of 100 steps · about **" in said
    assert "of memory" in said
    assert "not measured here yet" in texts(healthy(page(tiny_bert, "compare", **{"compare-batch": 7})))


def copied(run) -> RunFolder:
    shutil.copytree(run.path, run.path.with_name(f"{run.path.name}-b"))
    return RunFolder(run.path.with_name(f"{run.path.name}-b"))


def test_two_runs_are_drawn_on_the_same_plots(tiny_bert, run):
    other = copied(run)
    assert metrics_of(run, [other])["label"].nunique() == 4
    assert summaries_of(run, [other])["label"].tolist() == [
        "Head only",
        "LoRA",
        f"Head only ({other.name})",
        f"LoRA ({other.name})",
    ]
    test = healthy(page(tiny_bert, "compare", overlay="minilm", **{"runs-beside": [run.name], "curve-axis": "seconds"}))
    figure = test.get("plotly_chart")[0].proto.spec
    assert f"LoRA ({run.name})" in figure
    assert "seconds of training" in figure
    assert test.session_state["overlay"] == "minilm", "the second model of the Spectra page is another choice"


def test_runs_are_filtered_and_deleted_after_a_question(tiny_bert, run):
    other = copied(run)
    test = page(tiny_bert, "compare")
    test.session_state["all-runs"] = True
    healthy(test.run())
    test.multiselect(key="runs-state").set_value(["done"]).run()
    assert len(listed(test)) == 2
    test.session_state["delete-asked"] = other
    test.run()
    assert "cannot be undone" in texts(test)
    assert other.path.exists(), "not before it is said"
    test.button(key="delete-sure").click().run()
    assert not other.path.exists()
    assert run.path.exists()
    assert not list(run.path.parent.glob(".*"))


def listed(test) -> pd.DataFrame:
    return next(table.value for table in test.dataframe if "delete" in table.value)


def test_a_run_that_goes_on_is_not_deleted(run, monkeypatch):
    monkeypatch.setattr(RunFolder, "_refuse_running", lambda self: (_ for _ in ()).throw(RunError("It runs.")))
    with pytest.raises(RunError, match="It runs"):
        run.delete()
    assert (run.path / "config.json").exists()


def test_the_front_of_any_two_goes_through_what_the_intervals_separate():
    table = pd.DataFrame(
        {
            "label": ["small", "middle", "large"],
            "metric": "accuracy",
            "score": [0.60, 0.62, 0.80],
            "low": [0.55, 0.57, 0.75],
            "high": [0.65, 0.67, 0.85],
            "seeds": 3,
            "parameters": [10, 100, 1000],
            "tokens_per_second": [300.0, 200.0, 100.0],
            "train_seconds": [1.0, 3.0, 2.0],
        }
    )
    assert front(table, {}, "parameters", "score").tolist() == [True, False, True]
    assert front(table, {}, "score", "tokens_per_second").tolist() == [True, False, True]
    assert front(table, {}, "parameters", "train_seconds").tolist() == [True, False, False]


def test_any_two_figures_can_be_drawn(tiny_bert, run):
    test = healthy(page(tiny_bert, "compare", **{"pareto-x": "peak_memory_bytes", "pareto-y": "train_seconds"}))
    figure = test.get("plotly_chart")[1].proto.spec
    assert "peak memory" in figure
    assert "training (s)" in figure
    assert "Neither figure has an interval" in texts(test)


def test_columns_that_do_not_differ_are_hidden_and_said(tiny_bert, run):
    test = healthy(page(tiny_bert, "compare"))
    assert "head" not in test.dataframe[0].value
    assert "The same for all: head 33" in texts(test)
    test.toggle(key="differences-only").set_value(False).run()
    assert "head" in healthy(test).dataframe[0].value


def test_several_seeds_are_judged_seed_by_seed(tiny_bert, run):
    assert "Cannot tell" in texts(healthy(page(tiny_bert, "compare"))), (
        "both seeds differ by the same, which says nothing of chance"
    )
    path = run.trial_folder(run.settings.trials()[-1].id) / "result.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "score": known["score"] + 0.001}))
    assert "ahead of every other seed by seed, over 2 seeds" in texts(healthy(page(tiny_bert, "compare")))


def test_test_scores_choose_neither_rate_nor_seed_of_the_best_adapter(tiny_bert):
    from app.panels.run_list import best_adapter

    run = finished_run(
        SweepSettings(str(tiny_bert), methods=("lora",), learning_rates={"lora": (1e-3, 2e-3)}, seeds=2, steps=4)
    )
    for trial in run.settings.trials():
        (run.trial_folder(trial.id) / "adapter").mkdir()
        (run.trial_folder(trial.id) / "adapter" / "adapter_config.json").write_text("{}")
    chosen = run.summary()["learning_rate"].iloc[0]
    assert max(run.results()["score"]) > best_adapter(run).score
    assert (best_adapter(run).learning_rate, best_adapter(run).seed) == (chosen, 0)
