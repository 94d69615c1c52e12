"""Cost, on disk: exact bytes, fleets, and the plan in use."""

from __future__ import annotations

import pytest

from app import state
from loraxs_core.checkpoint import Checkpoint
from tests.app.pages import go, healthy, page, texts

pytestmark = pytest.mark.usefixtures("fresh_page")


@pytest.fixture(autouse=True)
def without_the_other_half(monkeypatch):
    """GPU memory has tests of its own, and traces a model in each run of the page."""
    monkeypatch.setattr("app.views.cost.training_memory.show", lambda *asked: None)


def test_methods_side_by_side_with_the_exact_bytes(tiny_bert):
    from analyzers.storage import adapter_size

    test = healthy(page(tiny_bert, "cost"))
    table = test.dataframe[0].value.set_index("method")
    exact = adapter_size(Checkpoint.open(tiny_bert), "lora-xs", rank=16).file_bytes
    assert table.loc["LoRA-XS", "file (B)"] == exact
    assert table.loc["LoRA-XS", "fleet (GB)"] == exact / 1000
    assert set(table.index) == {"Full fine-tune", "LoRA", "VeRA", "LoRA-XS"}


def test_break_even_loading_and_residents(tiny_bert):
    from analyzers.storage import Scenario, break_even

    session = {"rank-lora-xs": 4, "link": 2.5, "memory-gib": 1.5}
    test = healthy(page(tiny_bert, "cost", **session))
    checkpoint = Checkpoint.open(tiny_bert)
    for method in ("lora", "vera"):
        assert break_even(checkpoint, method).sentence in texts(test)
    asked = Scenario(str(tiny_bert), ranks={"lora-xs": 4}, adapters=1_000_000, gigabits_per_second=2.5, memory_gib=1.5)
    exact = asked.frame(checkpoint).set_index("label")
    table = test.dataframe[0].value.set_index("method")
    for shown, column in (("load one (s)", "load_seconds"), ("stay in 1.5 GiB", "resident"), ("fleet (GB)", "fleet_gb")):
        assert table[shown].to_dict() == exact[column].to_dict()
    command = test.code[0].value
    assert command.startswith(f"loraxs fleet {tiny_bert} --methods full,lora,vera,lora-xs")
    assert "--rank lora-xs=4" in command
    assert "--link 2.5 --memory 1.5" in command


def test_the_plan_in_use_is_counted(tiny_bert):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    trained = test.metric[0].value
    test.button(key="use").click().run()
    healthy(go(test, "cost"))
    row = test.dataframe[0].value.set_index("method").loc["LoRA-XS"]
    assert f"{int(row['trained numbers']):,}" == trained
    command, python = test.code[0].value, test.code[1].value
    assert f"--plan {state._plan_file(test.session_state['plan'])} --rank lora=8 --rank vera=256" in command
    assert "plan=RankPlan.load(" in python
    exec(compile(python, "snippet", "exec"), {})


def test_a_rank_larger_than_a_matrix_is_one_sentence(tiny_bert):
    test = page(tiny_bert, "cost", **{"rank-lora-xs": 999})
    assert not test.exception
    assert "larger than the matrix" in test.error[0].value


def test_an_architecture_without_weights_has_costs():
    test = healthy(page("roberta-large", "cost", **{"rank-lora-xs": 25}))
    assert test.dataframe[0].value.set_index("method").loc["LoRA-XS", "trained numbers"] == 60_000


PRICES = {
    "versions": 3, "loads": 5e6, "price": 0.05, "request-price": 0.001, "egress": 0.09, "base-gib": 0.5, "memory-gib": 1.0,
    "replicas": 2, "adapters": 500, "vera-seeded": True, "saved-dtype": "bfloat16", "saved-task": "sequence-classification",
}  # fmt: skip


def shown(test) -> dict:
    """The table of figures: method -> (file, fleet, money, load, residents)."""
    return {row[0]: tuple(row[4:]) for row in test.dataframe[0].value.itertuples(index=False)}


def figures(frame) -> dict:
    """The same out of `Scenario.frame` or the command's JSON."""
    keys = ("file_bytes", "header_bytes", "fleet_gb", "cost_per_month", "load_seconds", "resident")
    return {row["label"]: tuple(row[key] for key in keys) for row in frame}


def test_every_input_is_in_the_figures_the_command_and_the_code(tiny_bert, capsys):
    """What is on screen comes out of the command and of the Python code beside it, to the last digit."""
    import shlex

    from tests.app.test_cli import call_json

    methods = ["full", "lora", "vera", "lora-xs", "dora", "ia3", "tinylora", "psoft"]
    ranks = {"rank-lora": 3, "rank-vera": 9, "rank-lora-xs": 4, "rank-dora": 5, "rank-tinylora": 2, "rank-psoft": 6}
    test = healthy(page(tiny_bert, "cost", **PRICES, **ranks, **{"storage-methods": methods, "run-steps": 70, "run-every": 20}))
    fleet, run = test.code[0].value.splitlines()
    found = call_json(capsys, *shlex.split(fleet)[1:])
    assert figures(found["methods"]) == shown(test)
    assert len(shown(test)) == len(methods)
    names = {}
    exec(compile(test.code[1].value, "snippet", "exec"), names)
    assert figures(names["scenario"].frame(names["model"]).to_dict("records")) == shown(test)
    written = call_json(capsys, *shlex.split(run)[1:])["methods"]
    table = next(table.value for table in test.dataframe if "written in all (B)" in table.value)
    # the command reads VeRA's seed, the class and the precision as well
    assert [row["run"]["written"] for row in written] == table["written in all (B)"].tolist()
    assert (table["checkpoints"] == 4).all()


def test_the_seed_of_vera_is_in_the_command(tiny_bert):
    test = healthy(page(tiny_bert, "cost", **{"vera-seeded": True}))
    assert "--vera-seeded" in test.code[0].value
    assert "save_projection" in test.code[1].value
    assert shown(test)["VeRA"][0] < shown(healthy(page(tiny_bert, "cost", **{"vera-seeded": False})))["VeRA"][0]


def test_the_papers_example_stands_beside_the_page(tiny_bert):
    test = healthy(page(tiny_bert, "cost"))
    test.selectbox(key="scenario").set_value("gpt-3-one-million-users").run()
    said = texts(healthy(test))
    assert "144 TB against 96 GB" in said
    assert "numbers alone 151 TB" in said
    assert "numbers alone 98.3 GB" in said
    values = {metric.label: metric.value for metric in test.metric}
    assert values["LoRA, rank 16"] == "151 TB"
    assert values["LoRA-XS, rank 16"] == "142 GB"  # with the header and the proof of every file
    assert test.session_state["model"] == str(tiny_bert)  # the page's own model stays


def test_a_scenario_fills_the_inputs(tiny_bert):
    test = page(tiny_bert, "cost", scenario="gpt-3-one-million-users")
    test.button(key="scenario-use").click().run()
    healthy(test)
    assert test.multiselect(key="storage-methods").value == ["full", "lora", "lora-xs"]
    assert test.number_input(key="rank-lora").value == 16
    assert test.selectbox(key="saved-dtype").value == "float16"
    assert test.selectbox(key="saved-task").value == "the checkpoint's own"
    assert test.session_state["model"] == str(tiny_bert)
    test.button(key="scenario-open").click().run()
    assert healthy(test).session_state["model"] == "gpt-3-175b"
    table = test.dataframe[1].value.set_index("method")
    assert table.loc["LoRA-XS", "rank"] == 16


def test_settings_are_saved_under_a_name_used_again_and_deleted(tiny_bert):
    from analyzers.storage import find_scenario, own_names

    test = page(tiny_bert, "cost", adapters=77, versions=4, **{"rank-lora-xs": 5})
    before = shown(test)
    test.text_input(key="scenario-name").set_value("my fleet")
    test.button(key="scenario-save").click().run()
    healthy(test)
    assert own_names() == ["my fleet"]
    assert find_scenario("my fleet").versions == 4
    other = page(tiny_bert, "cost", scenario="my fleet")
    assert shown(other)["LoRA-XS"] == before["LoRA-XS"]  # its block comes first
    other.button(key="scenario-use").click().run()
    other.selectbox(key="scenario").select_index(0).run()
    assert shown(healthy(other)) == before
    other.selectbox(key="scenario").set_value("my fleet").run()
    other.button(key="scenario-delete").click().run()
    assert healthy(other).selectbox(key="scenario").value == "none: the settings below"
    assert own_names() == []


def test_a_saved_plan_comes_back_with_its_scenario(tiny_bert):
    test = page(tiny_bert, "plan", **{"like-rank": 4})
    test.button(key="use").click().run()
    chosen = test.session_state["plan"]
    go(test, "cost").text_input(key="scenario-name").set_value("planned")
    test.button(key="scenario-save").click().run()
    before = shown(test)
    test.session_state["plan"] = None
    test.selectbox(key="scenario").set_value("planned").run()
    test.button(key="scenario-use").click().run()
    assert healthy(test).session_state["plan"] == chosen
    test.selectbox(key="scenario").select_index(0).run()
    assert shown(healthy(test)) == before


def test_a_scenario_is_replaced_only_when_the_person_says_so(tiny_bert):
    from analyzers.storage import Scenario, find_scenario, keep_scenario

    keep_scenario("Mine", Scenario(str(tiny_bert), adapters=5))
    test = page(tiny_bert, "cost", adapters=77, **{"scenario-name": "mine"})
    test.button(key="scenario-save").click().run()
    assert "There is a scenario called mine already." in texts(healthy(test))
    test.button(key="scenario-leave").click().run()
    assert "already" not in texts(healthy(test))
    assert find_scenario("Mine").adapters == 5
    test.button(key="scenario-save").click().run()
    test.button(key="scenario-replace").click().run()
    assert "already" not in texts(healthy(test))
    assert find_scenario("Mine").adapters == 77


def test_a_name_that_is_taken_is_one_sentence(tiny_bert):
    test = page(tiny_bert, "cost", **{"scenario-name": "gpt-3-one-million-users"})
    test.button(key="scenario-save").click().run()
    assert not test.exception
    assert "called gpt-3-one-million-users already" in test.error[0].value
    assert len(shown(test)) == 4


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("broken.json", b'{"model": ', "broken.json is not valid JSON"),
        ("other.json", b"[1, 2]", "other.json is not a scenario"),
        ("priced.json", b'{"model": "minilm", "price_per_gb_month": -1}', "price per GB and month must be 0 or more"),
    ],
)
def test_a_broken_file_is_one_sentence(tiny_bert, name, content, says):
    test = page(tiny_bert, "cost")
    test.file_uploader(key="scenario-file").set_value((name, content, "application/json")).run()
    assert not test.exception
    assert says in test.error[0].value
    assert len(shown(test)) == 4  # the rest of the page stays


def test_a_scenario_file_is_taken_in_and_shown(tiny_bert):
    from analyzers.storage import Scenario, own_names

    text = Scenario(str(tiny_bert), methods=("lora", "lora-xs"), adapters=9, note="Nine of them.").to_json()
    test = page(tiny_bert, "cost")
    test.file_uploader(key="scenario-file").set_value(("nine.json", text.encode(), "application/json")).run()
    assert own_names() == ["nine"]
    assert "Nine of them." in texts(healthy(test))
    assert set(shown(test)) == {"LoRA", "LoRA-XS"}


def test_a_scenario_whose_model_is_not_here_is_one_sentence(tiny_bert):
    from analyzers.storage import Scenario, keep_scenario

    keep_scenario("elsewhere", Scenario("nobody/no-such-model", adapters=5))
    test = page(tiny_bert, "cost", scenario="elsewhere")
    assert not test.exception
    assert "nobody/no-such-model" in test.error[0].value
    assert len(shown(test)) == 4
    test.button(key="scenario-use").click().run()  # its settings can be used all the same
    assert test.number_input(key="adapters").value == 5


def test_what_an_input_cannot_hold_is_one_sentence(tiny_bert):
    from analyzers.storage import Scenario, keep_scenario

    keep_scenario("odd", Scenario(str(tiny_bert), dtype="float64"))
    keep_scenario("vast", Scenario(str(tiny_bert), replicas=10**6))
    for name, says in (("odd", "saved as float64"), ("vast", "replicas of 1,000,000 is beyond")):
        test = page(tiny_bert, "cost", scenario=name)
        test.button(key="scenario-use").click().run()
        assert not test.exception
        assert says in test.error[0].value


def test_no_method_and_head_only_without_a_task_are_one_sentence(tiny_bert):
    for methods, says in (([], "at least one method"), (["head-only"], "needs a task with a head")):
        test = page(tiny_bert, "cost", **{"storage-methods": methods})
        assert not test.exception
        assert says in test.error[0].value
        assert test.number_input(key="adapters").value == 1_000_000
    healthy(page(tiny_bert, "cost", **{"storage-methods": ["head-only"], "saved-task": "sequence-classification"}))


def test_what_a_run_writes_follows_its_optimizer(tiny_bert):
    from analyzers.storage import adapter_size, run_bytes

    test = healthy(
        page(tiny_bert, "cost", **{"run-steps": 1000, "run-every": 300, "run-keep": 2, "run-optimizer": "adafactor"})
    )
    table = next(table.value for table in test.dataframe if "left on disk (B)" in table.value).set_index("method")
    exact = run_bytes(
        adapter_size(Checkpoint.open(tiny_bert), "lora", rank=8), steps=1000, save_every=300, keep=2, optimizer="adafactor"
    )
    assert table.loc["LoRA", "left on disk (B)"] == exact.on_disk
    assert table.loc["LoRA", "of it optimizer state (B)"] == exact.optimizer
    assert "--steps 1000 --save-every 300 --keep 2 --optimizer adafactor" in test.code[0].value


def test_ranks_in_the_table_sort_as_numbers(tiny_bert):
    ranks = healthy(page(tiny_bert, "cost", **{"rank-lora": 16})).dataframe[0].value["rank"]
    assert ranks.dropna().sort_values().tolist() == [16, 16, 256]


def test_folded_inputs_are_drawn_when_they_are_opened_or_hold_something_typed(tiny_bert):
    def drawn(test, key):
        return key in [one.key for one in test.number_input]

    test = healthy(page(tiny_bert, "cost"))
    assert not drawn(test, "price")
    assert not drawn(test, "run-steps")
    folded = [code.value for code in test.code]
    test.session_state["folded-price"] = test.session_state["folded-run-steps"] = True
    healthy(test.run())
    assert drawn(test, "price")
    assert drawn(test, "run-steps")
    assert [code.value for code in test.code] == folded, "the same numbers, seen or not"
    test.number_input(key="price").set_value(0.05).run()
    test.session_state["folded-price"] = test.session_state["folded-run-steps"] = False
    healthy(test.run())
    assert not drawn(test, "run-steps")
    assert test.number_input(key="price").value == 0.05
    assert "0.05" in test.code[0].value
    assert healthy(page(tiny_bert, "cost")).number_input(key="price").value == 0.05  # tomorrow as well
