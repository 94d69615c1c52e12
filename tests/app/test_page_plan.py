"""Plan: ranks, totals, exports, and budgets that cannot be met."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from analyzers.compare.rank_advice import AdviceSettings, Point, RankAdvice
from analyzers.ranks import Budget, PlanSettings, RankPlan, Signals, make_plan
from analyzers.ranks.signals import Curve
from app import state
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.paths import data_dir
from tests.app.pages import go, healthy, page, texts

pytestmark = pytest.mark.usefixtures("fresh_page")


def test_a_plan_by_role_with_its_totals_and_evidence(tiny_bert):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    healthy(test)
    metrics = {metric.label: metric.value for metric in test.metric}
    assert int(metrics["Trained numbers, Σ r²"].replace(",", "")) <= 8 * 16
    assert float(metrics["Of the budget"].split()[0]) >= 95
    assert "What this rests on" in texts(test)


def test_an_edited_rank_changes_the_totals(tiny_bert):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    before = test.metric[0].value
    shown = make_plan(Checkpoint.open(tiny_bert), budget=Budget.like_rank(4))
    key = f"edit-{state.identity(shown)}-0"
    test.session_state[key] = {"edited_rows": {0: {"rank": 9}}, "added_rows": [], "deleted_rows": []}
    healthy(test.run())
    assert test.metric[0].value != before
    assert "more than the budget" in test.warning[0].value


def test_a_plan_in_use_is_shared_saved_and_found_again(tiny_bert):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    test.button(key="use").click().run()
    healthy(test)
    chosen = test.session_state["plan"]
    assert test.query_params["plan"] == chosen
    again = page(tiny_bert, "plan", plan=chosen)
    assert again.selectbox(key="strategy").value == "in-use"
    assert again.metric[0].value == test.metric[0].value


def test_a_budget_too_small_is_one_sentence_and_the_controls_stay(tiny_bert):
    test = page(tiny_bert, "plan", budget="parameters", parameters=3)
    assert not test.exception
    assert "below rank 1 in each of the 8 layers" in test.error[0].value
    assert test.selectbox(key="strategy").value == PlanSettings().strategy


@pytest.mark.parametrize(
    ("typed", "held"),
    [
        ({"budget": "lora_parameters", "lora-parameters": 20_000}, lambda plan: sum(r * sum(plan.shapes[n]) for n, r in plan.ranks.items()) <= 20_000),
        ({"budget": "gpu_bytes", "gpu-bytes": 1}, lambda plan: 0 < plan.trainable < 10**6),
        ({"budget": "gain_kept", "gain-kept": 50, "strategy": "energy"}, lambda plan: plan.trainable > 8),
        ({"budget": "fits", "fit-gpu": "24"}, lambda plan: set(plan.ranks.values()) == {min(map(min, plan.shapes.values()))}),
        ({"pins": "query=3, mlp.down=7", "like-rank": 4}, lambda plan: {3, 7} <= set(plan.ranks.values())),
        ({"exclude": "attention.value", "same": "role", "like-rank": 4}, lambda plan: not any("value" in name for name in plan.ranks)),
    ],
    ids=["LoRA's numbers", "GPU bytes", "share of the gain", "fits a GPU", "pins", "exclusions"],
)  # fmt: skip
def test_budgets_and_limits_and_the_code_that_gives_them_again(scanned, tmp_path, monkeypatch, typed, held):
    test = healthy(page(scanned, "plan", **typed))
    monkeypatch.chdir(tmp_path)
    exec(compile(test.code[-1].value, "snippet", "exec"), {})
    made = RankPlan.load(tmp_path / "plan.json")
    assert held(made)
    assert f"{made.trainable:,}" == test.metric[0].value
    (tmp_path / "plan.json").unlink()
    run_command(test.code[-2].value)
    assert RankPlan.load(tmp_path / "plan.json").ranks == made.ranks


def run_command(line: str) -> None:
    from typer.testing import CliRunner

    from app.cli import app

    words = shlex.split(line)
    assert words[0] == "loraxs"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output


def test_a_pin_that_is_none_is_a_sentence_and_stays_typed(tiny_bert):
    test = page(tiny_bert, "plan", pins="mlp.down")
    assert not test.exception
    assert "A pin is MODULE=RANK" in test.error[0].value
    assert test.text_input(key="pins").value == "mlp.down"


def signals_of(folder, **changes) -> Signals:
    """As `loraxs measure` leaves them: later layers matter more."""
    names = list(make_plan(Checkpoint.open(folder), budget=Budget.like_rank(1)).ranks)
    curves = {name: Curve.of(*(np.arange(1, 33.0) * (place + 1),) * 3) for place, name in enumerate(names)}
    kinds = ("gradient", "adam", "fisher", "activation", "warm-up")
    known = {"model": Checkpoint.open(folder).name, "task": "stsb", "batches": 8, "curves": dict.fromkeys(kinds, curves)}
    return Signals(**(known | changes))


def test_a_strategy_that_follows_a_task_waits_for_one_and_takes_what_was_measured(tiny_bert, tmp_path, monkeypatch):
    test = healthy(page(tiny_bert, "plan", strategy="gradient", **{"like-rank": 4}))
    assert "follows a task, and none has been measured" in test.info[0].value
    assert test.button(key="measure-task")
    kept = signals_of(tiny_bert).save(data_dir("signals") / "one.json")
    again = healthy(test.run())
    assert "stsb: 8 batches" in again.selectbox(key="signals").options[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(again.code[-1].value, "snippet", "exec"), {})
    made = RankPlan.load(tmp_path / "plan.json")
    assert f"{made.trainable:,}" == again.metric[0].value
    assert len(set(made.ranks.values())) > 1
    assert f"--signals {kept}" in again.code[-2].value


def test_signals_of_another_model_are_refused(tiny_bert, tmp_path):
    test = healthy(page(tiny_bert, "plan", strategy="gradient"))
    file = signals_of(tiny_bert, model="another").save(tmp_path / "signals.json")
    test.file_uploader(key="signals-upload").set_value(("signals.json", file.read_bytes(), "application/json")).run()
    assert "signals.json holds the signals of another" in test.error[0].value
    assert not list(data_dir("signals").glob("*.json"))
    test.file_uploader(key="signals-upload").set_value(("cut.json", b"{", "application/json")).run()
    assert "cut.json is not valid JSON" in test.error[0].value


def test_advice_that_was_raced_is_the_answer_and_becomes_the_plan(tiny_bert):
    settings = AdviceSettings(model=str(tiny_bert), ranks=(4, 8, 16, 32))
    points = tuple(
        Point(rank, 0.01, 8 * rank**2, score, score - 0.01, score + 0.01, score, 0.9 - score, low, 0.2)
        for rank, score, low in ((4, 0.7, 0.1), (8, 0.89, -0.01), (16, 0.9, 0.0), (32, 0.85, 0.02))
    )
    RankAdvice(settings, "pearson", points, 16, 8, (0.6, 0.59, 0.61), (0.3, 0.28, 0.32), 20, str(settings.folder)).save()
    test = healthy(page(tiny_bert, "plan", **{"advice-open": True}))
    assert any("Take rank 8 at learning rate 0.01" in header.value for header in test.subheader)
    test.button(key="take-rank").click().run()
    assert healthy(test).number_input(key="like-rank").value == 8
    assert test.session_state["rates-lora-xs"] == "0.01"
    command = next(code.value for code in test.code if code.value.startswith("loraxs advise"))
    assert command.startswith(f"loraxs advise {tiny_bert} --task stsb")


def test_ranks_that_cannot_be_raced_are_a_sentence(tiny_bert):
    test = page(tiny_bert, "plan", **{"advice-open": True, "advice-ranks": "4, many"})
    assert "Ranks are whole numbers separated by commas" in test.error[0].value


def test_energy_without_spectra_leads_to_the_scan(tiny_bert):
    test = page(tiny_bert, "plan", strategy="energy")
    assert "has not been scanned" in test.error[0].value


def test_energy_with_spectra_shows_what_the_ranks_keep(scanned):
    test = healthy(page(scanned, "plan", strategy="energy", **{"like-rank": 4}))
    assert any(metric.label == "Mean energy at rank" for metric in test.metric)


def test_unknown_targets_are_named(tiny_bert):
    test = page(tiny_bert, "plan", targets="nothing_proj")
    assert "nothing_proj" in test.error[0].value


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("python", "get_peft_model"),
        ("lora-xs", "rank_pattern"),
        ("lora", "alpha_pattern"),
        ("json", "loraxs-rank-plan"),
        ("csv", "name,role"),
        ("peft-yaml", "target_modules:"),
        ("axolotl", "lora_alpha:"),
    ],
)
def test_exports(tiny_bert, kind, words):
    test = healthy(page(tiny_bert, "plan", export=kind, **{"like-rank": 4}))
    assert any(words in code.value for code in test.code)


def test_a_plan_of_another_model_is_refused(tiny_bert, tiny_llama):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    test.button(key="use").click().run()
    other = page(tiny_llama, "plan", plan=test.session_state["plan"])
    assert "The plan was made for" in other.error[0].value


def test_the_code_that_makes_the_plan_holds_the_ranks_typed_into_the_table(tiny_bert, tmp_path, monkeypatch):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    shown = make_plan(Checkpoint.open(tiny_bert), budget=Budget.like_rank(4))
    test.session_state[f"edit-{state.identity(shown)}-0"] = {
        "edited_rows": {0: {"rank": 9}}, "added_rows": [], "deleted_rows": []
    }  # fmt: skip
    healthy(test.run())
    command, python = test.code[-2].value, test.code[-1].value
    assert "no option for ranks typed by hand" in command
    monkeypatch.chdir(tmp_path)
    exec(compile(python, "snippet", "exec"), {})
    made = RankPlan.load(tmp_path / "plan.json")
    assert f"{made.trainable:,}" == test.metric[0].value
    assert next(iter(made.ranks.values())) == 9


def test_the_code_of_a_plan_in_use_gives_it_again(tiny_bert, tmp_path, monkeypatch):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    test.button(key="use").click().run()
    again = healthy(page(tiny_bert, "plan", plan=test.session_state["plan"]))
    monkeypatch.chdir(tmp_path)
    exec(compile(again.code[-1].value, "snippet", "exec"), {})
    assert f"{RankPlan.load(tmp_path / 'plan.json').trainable:,}" == again.metric[0].value


def test_a_plan_is_kept_when_another_model_was_open(fresh_page, tiny_bert, tiny_llama):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    test.button(key="use").click().run()
    name = test.session_state["plan"]
    go(test, "model").text_input(key="folder").set_value(str(tiny_llama))
    test.button(key="FormSubmitter:open-folder-Open").click().run()
    assert test.session_state["plan"] is None
    test.text_input(key="folder").set_value(str(tiny_bert))
    test.button(key="FormSubmitter:open-folder-Open").click().run()
    assert healthy(test).session_state["plan"] == name
    assert page(tiny_bert, "plan").session_state["plan"] == name  # tomorrow as well


def test_kept_plans_are_listed_and_opened(fresh_page, tiny_bert):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    test.button(key="use").click().run()
    first = test.session_state["plan"]
    test.selectbox(key="strategy").set_value("role").run()
    test.button(key="use").click().run()
    assert test.session_state["plan"] != first
    test.selectbox(key="kept-plan").set_value(first).run()
    test.button(key="open-plan").click().run()
    assert healthy(test).session_state["plan"] == first
    assert test.selectbox(key="strategy").value == "in-use"


def test_a_plan_from_a_file_is_opened_and_a_wrong_one_is_a_sentence(fresh_page, tiny_bert, tiny_llama, tmp_path):
    from analyzers.ranks import Budget, make_plan
    from loraxs_core.checkpoint import Checkpoint

    own = make_plan(Checkpoint.open(tiny_bert), "uniform", budget=Budget.like_rank(3))
    other = make_plan(Checkpoint.open(tiny_llama), "uniform", budget=Budget.like_rank(3))
    test = page(tiny_bert, "plan")
    foreign = b"peft_type: LORAXS\nr: 8\n"
    for name, content in (
        ("no.json", b"{"),
        ("adapter.yaml", foreign),
        ("adapter_config.json", b'{"r": 8}'),
        ("other.json", other.save(tmp_path / "other.json").read_bytes()),
    ):
        test.file_uploader(key="plan-upload").upload(name, content, "application/json").run()
        assert not test.exception
        assert len(test.error) == 1
        assert test.session_state["plan"] is None
    content = own.save(tmp_path / "own.json").read_bytes()
    test.file_uploader(key="plan-upload").upload("own.json", content, "application/json").run()
    assert "In use on every page" in [button.label for button in healthy(test).button]
    assert "Rank 3 in 8 layers" in test.header[0].value


def test_a_plan_that_is_not_here_is_said(fresh_page, tiny_bert):
    assert "no plan abcdef here" in texts(page(tiny_bert, "plan", plan="abcdef"))


def test_edits_are_undone_and_what_stands_beside_a_rank_follows(scanned):
    test = page(scanned, "plan", **{"like-rank": 4})
    made = make_plan(Checkpoint.open(scanned), budget=Budget.like_rank(4))
    before, key = test.metric[0].value, f"edit-{state.identity(made)}"
    rows = {"edited_rows": {0: {"rank": 9}}, "added_rows": [], "deleted_rows": []}
    test.session_state[f"{key}-0"] = rows
    healthy(test.run())
    typed = test.metric[0].value
    assert typed != before
    table = next(frame.value for frame in test.dataframe if "energy_at_rank" in frame.value)
    assert table["trainable"].iloc[0] == 81
    assert table["energy_at_rank"].iloc[0] == pytest.approx(
        made.with_ranks({made_name(made): 9}).frame(Checkpoint.open(scanned), state_spectra(scanned))["energy_at_rank"].iloc[0]
    )
    assert "1 changed" in texts(test)
    test.button(key="undo").click().run()
    assert healthy(test).metric[0].value == before
    test.button(key="redo").click().run()
    assert healthy(test).metric[0].value == typed


def test_squares_of_the_map_get_a_rank_and_plans_are_compared(tiny_bert):
    test = page(tiny_bert, "plan", **{"like-rank": 4, "rank-tab": "On the map"})
    names = list(make_plan(Checkpoint.open(tiny_bert), "role", budget=Budget.like_rank(4)).ranks)
    test.session_state["rank-cells"] = names[:3]
    test.run()
    assert "by-role" not in {chart.key for chart in test.get("plotly_chart")}, "a folded comparison costs nobody anything"
    test.session_state["folded-compared-plan"] = True
    next(entry for entry in test.number_input if entry.label == "Rank of 3 chosen").set_value(2)
    test.button(key="set-cells").click().run()
    assert "3 changed" in texts(healthy(test))
    test.button(key="use").click().run()
    kept = test.session_state["plan"]
    assert {RankPlan.load(state._plan_file(kept)).ranks[name] for name in names[:3]} == {2}
    test.button(key="undo").click().run()
    test.selectbox(key="compared-plan").set_value(kept).run()
    assert "3 of 8 layers have another rank there" in texts(healthy(test))
    assert {"difference", "by-role"} <= {chart.key for chart in test.get("plotly_chart")}
    test.segmented_control(key="plans-view").set_value("both").run()
    assert {"both", "by-role"} <= {chart.key for chart in healthy(test).get("plotly_chart")}


def test_a_second_model_of_the_spectra_page_is_no_second_plan(fresh_page, tiny_bert):
    """Both choices were called alike in the session, and the page of plans began anew without all that was typed."""
    test = healthy(
        page(tiny_bert, "plan", beside="minilm-sre", strategy="role", **{"like-rank": 4, "folded-compared-plan": True})
    )
    assert test.selectbox(key="compared-plan").value == "uniform ranks at the same budget"
    assert test.number_input(key="like-rank").value == 4


def test_a_plan_has_a_name_in_the_list_and_above_every_page(fresh_page, tiny_bert):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    test.button(key="use").click().run()
    kept = test.session_state["plan"]
    test.text_input(key=f"name-{kept}").set_value("for the *paper*").run()
    assert "`*paper*`" in texts(healthy(test))  # as text
    assert any(line.startswith("for the *paper*  ·  uniform") for line in test.selectbox(key="kept-plan").options)
    assert "for the" in texts(healthy(page(tiny_bert, "cost")))  # another session
    test.text_input(key=f"name-{kept}").set_value(" ").run()
    assert not state.plan_names()


def made_name(plan: RankPlan) -> str:
    return next(iter(plan.ranks))


def state_spectra(model):
    from analyzers.spectra import cached

    return cached(Checkpoint.open(model))
