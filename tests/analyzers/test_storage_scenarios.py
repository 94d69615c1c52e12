"""Scenarios: kept as files and under names, refused in one sentence when they are broken."""

from __future__ import annotations

import json

import pytest

from analyzers.ranks import Budget, make_plan
from analyzers.storage import (
    SCENARIOS,
    Scenario,
    adapter_size,
    break_even,
    find_scenario,
    forget_scenario,
    keep_scenario,
    own_names,
    scenario_names,
    what_weighs,
)
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError
from sample_models import open_model


@pytest.fixture(scope="module")
def roberta():
    return open_model("roberta-large")


def test_scenarios_are_saved_and_read_back(tmp_path, roberta):
    scenario = Scenario(
        "roberta-large", ranks={"lora-xs": 4}, adapters=10, versions=3, loads_per_month=1e6, egress_price_per_gb=0.09
    )
    again = Scenario.load(scenario.save(tmp_path / "scenario.json"))
    assert again == scenario
    frame = again.frame(roberta)
    assert list(frame["method"]) == ["full", "lora", "vera", "lora-xs"]
    assert (frame["fleet_bytes"] == 30 * frame["file_bytes"]).all()
    assert frame["cost_per_month"].is_monotonic_decreasing


def test_a_plan_goes_into_the_file_with_its_ranks(tmp_path, tiny_bert):
    checkpoint = Checkpoint.open(tiny_bert)
    plan = make_plan(checkpoint, "role", budget=Budget.like_rank(4), targets="all-linear")
    scenario = Scenario(str(tiny_bert), methods=("lora", "lora-xs"), ranks={"lora": 2}, plan=plan.to_dict(), adapters=5)
    again = Scenario.load(scenario.save(tmp_path / "planned.json"))
    frame = again.frame(checkpoint).set_index("method")
    assert frame.loc["lora-xs", "file_bytes"] == adapter_size(checkpoint, "lora-xs", plan=plan).file_bytes
    lora = adapter_size(checkpoint, "lora", rank=2, targets=tuple(plan.ranks))  # on the plan's layers, not the paper's
    assert frame.loc["lora", "file_bytes"] == lora.file_bytes
    assert [one.sentence for one in again.meets(checkpoint)] == [
        break_even(checkpoint, "lora", rank=2, targets=tuple(plan.ranks)).sentence
    ]


def test_seeded_vera_is_a_setting_of_the_scenario(roberta):
    seeded = Scenario("roberta-large", methods=("vera",), options={"vera": {"save_projection": False}})
    saved = seeded.but(options=None)
    assert seeded.frame(roberta)["file_bytes"][0] < saved.frame(roberta)["file_bytes"][0] / 5


def test_the_curve_passes_through_the_fleet(roberta):
    scenario = Scenario("roberta-large", adapters=1000, replicas=2)
    sizes = scenario.sizes(roberta)
    curve = scenario.curve(sizes, [1, 1000]).set_index(["method", "adapters"])["bytes"]
    frame = scenario.frame(roberta, sizes).set_index("method")["fleet_bytes"]
    assert all(curve[name, 1000] == frame[name] == 1000 * curve[name, 1] for name in scenario.methods)


def test_the_words_of_what_weighs(roberta):
    scenario = Scenario("roberta-large", methods=("lora", "lora-xs"), ranks={"lora": 16, "lora-xs": 4})
    said = what_weighs(scenario.sizes(roberta))
    assert "LoRA's is " in said
    assert "times as large" in said
    assert "is the header" in said  # 96 matrices of 16 numbers each
    assert "times smaller" in what_weighs(scenario.but(ranks={"lora": 1, "lora-xs": 512}).sizes(roberta))
    assert what_weighs(scenario.but(methods=("lora",)).sizes(roberta)).startswith("The smallest file is LoRA's")


def test_scenarios_have_names(own_folders, tmp_path):
    assert scenario_names() == list(SCENARIOS)
    mine = Scenario("minilm", adapters=7)
    keep_scenario("my fleet", mine)
    assert own_names() == ["my fleet"]
    assert find_scenario("my fleet") == mine
    assert find_scenario("gpt-3-one-million-users") is SCENARIOS["gpt-3-one-million-users"]
    assert find_scenario(mine.save(tmp_path / "elsewhere.json")) == mine
    with pytest.raises(SettingsError, match="already"):
        keep_scenario("My Fleet", mine)
    with pytest.raises(SettingsError, match="already"):
        keep_scenario("gpt-3-one-million-users", mine)
    for name in ("", "  ", "../up", "a/b", ".hidden", "x" * 61):
        with pytest.raises(SettingsError, match="cannot be the name"):
            keep_scenario(name, mine)
    forget_scenario("my fleet")
    assert own_names() == []
    with pytest.raises(SettingsError, match="no scenario of your own"):
        forget_scenario("my fleet")
    with pytest.raises(SettingsError, match=r"There is no scenario 'my fleet'.*gpt-3-one-million-users"):
        find_scenario("my fleet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        ("[]", "is not a scenario"),
        ("7", "is not a scenario"),
        ('{"adapters": 7}', "needs a model"),
        ('{"model": "a", "colour": 1}', "is not a scenario"),
        ('{"model": 7}', "needs the name of a model, not 7"),
        ('{"model": "a", "methods": []}', "at least one method"),
        ('{"model": "a", "methods": "lora"}', "at least one method"),
        ('{"model": "a", "methods": ["magic"]}', "Unknown method 'magic'"),
        ('{"model": "a", "methods": [["lora"]]}', "Unknown method"),
        ('{"model": "a", "ranks": [4]}', "ranks of a scenario are names with values"),
        ('{"model": "a", "ranks": {"lora": "four"}}', "rank of lora must be a whole number of at least 1, not 'four'"),
        ('{"model": "a", "options": {"vera": 1}}', "options of vera"),
        ('{"model": "a", "plan": {"ranks": {}}}', "plan in the scenario is not a rank plan"),
        ('{"model": "a", "targets": ["q"]}', "targets of a scenario must be text"),
        ('{"model": "a", "dtype": 32}', "Unknown dtype 32"),
        ('{"model": "a", "task": 1}', "Unknown task"),
        ('{"model": "a", "adapters": 0}', "number of adapters must be a whole number of at least 1, not 0"),
        ('{"model": "a", "adapters": "many"}', "not 'many'"),
        ('{"model": "a", "adapters": true}', "number of adapters"),
        ('{"model": "a", "price_per_gb_month": -1}', "price per GB and month must be 0 or more, not -1"),
        ('{"model": "a", "price_per_gb_month": null}', "price per GB and month must be 0 or more, not None"),
        ('{"model": "a", "gigabits_per_second": 0}', "speed of the link"),
        ('{"model": "a", "memory_gib": NaN}', "memory for adapters must be a positive number"),
        ('{"model": "a", "base_bytes_in_memory": -1}', "taken by the base model"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, text, message):
    file = tmp_path / "broken.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError, match=message) as caught:
        Scenario.load(file)
    assert "broken.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(SettingsError, match="Cannot read the scenario"):
        Scenario.load(tmp_path / "absent.json")


def test_the_papers_example_is_plain_json():
    document = json.loads(SCENARIOS["gpt-3-one-million-users"].to_json())
    assert document["adapters"] == 1_000_000
    assert document["title"].startswith("GPT-3")
