"""Compare: before the first run, finished runs, failures, and the command that starts the same."""

from __future__ import annotations

import json

import pytest

from analyzers.ranks import RankPlan
from app import state
from loraxs_core.errors import RunError
from tests.app.pages import go, healthy, page, texts

pytestmark = pytest.mark.usefixtures("fresh_page")


def test_before_the_first_run_the_page_says_what_will_happen(tiny_bert):
    test = healthy(page(tiny_bert, "compare"))
    assert "No comparison yet" in texts(test)
    assert "4 trials of 100 steps" in texts(test)


def test_an_architecture_cannot_be_trained_and_says_so():
    test = healthy(page("roberta-large", "compare"))
    assert "cannot be trained" in texts(test)


def test_an_unknown_task_is_one_sentence(tiny_bert):
    test = page(tiny_bert, "compare", task="csv:/no/such/file.csv")
    assert not test.exception
    assert "/no/such/file.csv" in test.error[0].value


def test_learning_rates_that_are_no_numbers_are_one_sentence(tiny_bert):
    test = page(tiny_bert, "compare", **{"rates-lora": "fast"})
    assert "LoRA" in test.error[0].value


@pytest.mark.parametrize("task", ["stsb", "boolq"])
def test_a_rate_on_show_is_that_of_the_tasks_kind_with_its_source(tiny_bert, task):
    from analyzers.methods import METHODS

    rate = METHODS["lora"].rate(causal=task == "boolq")
    box = page(tiny_bert, "compare", task=task).text_input(key="rates-lora")
    assert box.placeholder == f"{rate.value:g}"
    assert rate.source in box.help


def test_the_command_carries_plans_ranks_and_rates(tiny_bert):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    test.selectbox(key="strategy").set_value("role").run()
    test.button(key="use").click().run()
    file = state._plan_file(test.session_state["plan"])
    for key, value in {"compare-uniform": True, "rates-lora": "5e-4 1e-3", "compare-rank-lora": 4}.items():
        test.session_state[key] = value
    command = healthy(go(test, "compare")).code[0].value
    plan, compare = command.splitlines()
    assert plan.startswith(f"loraxs plan {tiny_bert} --strategy uniform --parameters 128 ")
    assert "--learning-rate lora=0.0005,0.001 --out DIR" in compare
    assert "--ranks lora=4 " in compare
    assert f"--plan {file} --plan uniform.json" in compare
    python = test.code[1].value.partition("run = ")
    settings = "settings = " + python[2].partition("start_sweep(")[2].rpartition(")\nprint")[0]
    names = {}
    exec(compile(python[0] + settings, "snippet", "exec"), names)
    in_use, uniform = names["settings"].plans.values()
    assert in_use["ranks"] == dict(RankPlan.load(file).ranks)
    assert set(uniform["ranks"].values()) == {4}
    assert names["settings"].ranks["lora"] == 4


def test_without_a_plan_the_command_has_the_rank(tiny_bert):
    command = healthy(page(tiny_bert, "compare", **{"compare-rank-lora-xs": 6})).code[0].value
    assert "--rank 6 --out DIR" in command


def test_runs_are_told_apart_by_lines_that_stay_the_same(tiny_bert, run):
    import shutil

    shutil.copytree(run.path, run.path.with_name(f"{run.path.name}-2"))  # started in the same second
    box = healthy(page(tiny_bert, "compare")).selectbox(key="run")
    assert len(set(box.options)) == 2
    (run.path / "status.json").write_text(json.dumps({"state": "failed", "error": "No memory."}))
    assert page(tiny_bert, "compare").selectbox(key="run").options == box.options


def test_settings_are_shown_in_words(tiny_bert, run):
    shown = next(table.value for table in healthy(page(tiny_bert, "compare")).dataframe if "setting" in table.value)
    values = dict(zip(shown["setting"], shown["value"], strict=True))
    assert values["methods"] == "head-only, lora"
    assert values["seeds"] == "0, 1"
    assert not any(set("[]{}()") & set(value) for value in values.values())


def test_methods_that_change_places_with_the_seed_cannot_be_told_apart(tiny_bert, run):
    record = run.trial_folder(run.settings.trials()[3].id) / "result.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"score": 0.65}))
    said = texts(healthy(page(tiny_bert, "compare")))
    assert "Cannot tell LoRA and Head only apart seed by seed" in said
    assert "An interval that holds 0 shows no difference" in said


def test_a_finished_run_shows_its_table_curves_and_front(tiny_bert, run):
    test = healthy(page(tiny_bert, "compare"))
    table = test.dataframe[0].value
    assert table["method"].tolist() == ["Head only", "LoRA"]
    assert table["test Pearson r"].tolist() == pytest.approx([0.6, 0.7])
    assert "0.7" in texts(test)
    assert len(test.get("plotly_chart")) == 2
    assert "Paired differences, seed by seed" in [expander.label for expander in test.expander]


def test_a_run_whose_process_died_can_be_resumed(tiny_bert, run):
    status = {"state": "running", "pid": 2**22 + 1, "process_started": 1.0, "trials_done": 1, "trials_total": 4}
    (run.path / "status.json").write_text(json.dumps(status))
    test = page(tiny_bert, "compare")
    assert "ended without a word" in test.error[0].value
    assert test.button(key="resume").label == "Resume"


def test_a_run_that_ended_before_its_first_point_promises_none(tiny_bert, run):
    (run.path / "metrics.jsonl").unlink()
    (run.path / "status.json").write_text(json.dumps({"state": "cancelled", "trials_total": 4}))
    said = texts(healthy(page(tiny_bert, "compare")))
    assert "ended before the first point" in said
    assert "first points of the curves appear" not in said


def test_a_run_all_of_whose_records_are_damaged_is_shown(tiny_bert, run):
    from typer.testing import CliRunner

    from app.cli import app

    for trial in run.settings.trials():
        (run.trial_folder(trial.id) / "result.json").write_text("{}")
    test = page(tiny_bert, "compare")
    assert not test.exception
    assert sum("is damaged" in box.value for box in test.error) == 4
    said = CliRunner().invoke(app, ["runs", run.name])
    assert said.exit_code == 0, said.output


def test_a_failed_trial_is_named_and_the_others_stay(tiny_bert, run):
    trial = run.settings.trials()[1]
    folder = run.trial_folder(trial.id)
    (folder / "result.json").unlink()
    failure = {
        "trial": trial.id,
        "method": "lora",
        "label": "LoRA",
        "seed": 0,
        "state": "failed",
        "error": "LoRA ran out of memory.",
    }
    (folder / "failure.json").write_text(json.dumps(failure))
    test = page(tiny_bert, "compare")
    assert not test.exception
    assert "ran out of memory" in test.error[0].value
    assert test.header[0].value.endswith("; a trial of LoRA failed.")  # its other seed has a score
    assert len(test.dataframe[0].value) == 2


def test_a_run_that_was_cancelled_before_any_score_says_so(tiny_bert, run):
    for file in run.path.glob("trials/*/result.json"):
        file.unlink()
    (run.path / "status.json").write_text(json.dumps({"state": "cancelled"}))
    assert page(tiny_bert, "compare").header[0].value == "No method has a score: the comparison was cancelled."


def test_what_the_differences_are_against_is_kept(tiny_bert, run):
    healthy(page(tiny_bert, "compare")).selectbox(key="against").set_value("LoRA").run()
    assert healthy(page(tiny_bert, "compare")).selectbox(key="against").value == "LoRA"


def test_a_run_s_settings_go_back_into_the_form(tiny_bert, tiny_llama, tmp_path):
    from analyzers.compare import RunFolder, SweepSettings
    from analyzers.ranks import Budget, make_plan
    from loraxs_core.checkpoint import Checkpoint
    from tests.analyzers.compare_helpers import sentiment_csv

    plan = make_plan(Checkpoint.open(tiny_bert), "role", budget=Budget.like_rank(3))
    settings = SweepSettings(
        str(tiny_bert), task=f"csv:{sentiment_csv(tmp_path / 'mine.csv')}", methods=("lora", "lora-xs"), seeds=3, steps=7, batch=5,
        sequence=24, ranks={"lora": 2}, plans={"mine": plan}, learning_rates={"lora": (1e-3, 2e-3)}, evaluations=2, test_examples=9,
        validation_examples=None,
    )  # fmt: skip
    RunFolder.create(settings)
    test = page(tiny_llama, "compare")
    healthy(test.button(key="run-again").click().run())
    assert test.session_state["model"] == str(tiny_bert)
    assert test.session_state["plan"] == state.identity(plan)
    python = next(code.value for code in test.code if "start_sweep" in code.value)
    for words in ("mine.csv", "('lora', 'lora-xs')", "steps=7", "batch=5", "sequence=24", "(0.001, 0.002)", "test_examples=9"):
        assert words in python, words
    assert test.number_input(key="seeds").value == 3
    assert test.number_input(key="validation-examples").value is None
    assert test.number_input(key="compare-rank-lora").value == 2


def test_trained_adapters_are_offered_by_method_task_and_score(tiny_bert, run):
    folder = run.trial_folder(run.settings.trials()[1].id) / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    offered = healthy(page(tiny_bert, "adapters")).selectbox[0].options
    assert len(offered) == 1
    assert offered[0].startswith("LoRA on STS-B  \u00b7  Pearson r 0.600")
    assert "Train some on the Compare page" not in texts(page(tiny_bert, "adapters"))


def test_a_comparison_with_a_configuration_of_the_users_own_is_listed_and_not_started_again_without_it(tiny_bert):
    from analyzers.compare import RunFolder, SweepSettings

    own = {"peft_type": "LORA", "r": 4, "target_modules": ["query"]}
    RunFolder.create(SweepSettings(str(tiny_bert), methods=("lora", "mine"), configs={"mine": own}, ablate=()))
    test = healthy(page(tiny_bert, "compare"))
    assert any("mine" in option for option in test.selectbox(key="run").options)
    test.button(key="run-again").click().run()
    assert not test.exception
    assert "configurations of its own" in test.error[0].value
    assert test.session_state["methods"] != ["lora", "mine"]


@pytest.fixture
def asleep(monkeypatch):
    """Processes that are started do nothing but live; how many were."""
    import subprocess
    import sys

    from loraxs_core import background

    begun = []

    def start(*_, **__):
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True))
        return begun[-1]

    monkeypatch.setattr(background, "start_module", start)
    yield begun
    for process in begun:
        process.kill()
        process.wait()


def test_two_pages_on_one_run(tiny_bert, run, asleep):
    """Both show a run whose process died. One resumes it: the other, which still offers that, starts no second process, and sees
    what the first does from then on. A run that is removed under a page is gone from it."""
    import shutil

    (run.path / "status.json").write_text(json.dumps({"state": "running", "pid": 2**22 + 1, "process_started": 1.0}))
    one, other = page(tiny_bert, "compare"), page(tiny_bert, "compare")
    one.button(key="resume").click().run()
    assert len(asleep) == 1
    other.button(key="resume").click().run()
    assert len(asleep) == 1
    for test in (one, other):
        assert not test.exception
        assert "cancel-run" in [button.key for button in test.button]
    other.button(key="cancel-run").click().run()
    one.button(key="cancel-run").click().run()
    for test in (one, other):
        assert not test.exception
        assert "resume" in [button.key for button in test.button]
    assert run.status().state == "cancelled"
    shutil.rmtree(run.path)
    for test in (one, other):
        assert not test.run().exception
        assert "resume" not in [button.key for button in test.button]


def test_a_run_that_is_renamed_while_it_is_watched(tiny_bert, run, monkeypatch):
    """The page reads a run that goes on every second, by itself and without the rest of the page around it."""
    from app.panels import one_run

    raised = []

    def fragment(*_, **__):
        def twice(live):
            def drawn():
                live()
                run.path.rename(run.path.with_name("elsewhere"))
                try:
                    live()
                except RunError as error:
                    raised.append(error)

            return drawn

        return twice

    monkeypatch.setattr(one_run.st, "fragment", fragment)
    test = page(tiny_bert, "compare")
    assert not test.exception, test.exception[0].message
    assert raised == []
    assert any("it is gone" in error.value for error in test.error)
    assert not run.path.exists()  # reading made nothing
