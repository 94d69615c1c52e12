"""`loraxs fleet` and `loraxs size`: plans, several methods, named scenarios, optimizers; one sentence for what cannot be."""

from __future__ import annotations

import json

import pytest

from analyzers.storage import OPTIMIZERS, Scenario, adapter_size
from loraxs_core.checkpoint import Checkpoint
from tests.app.test_cli import call, call_json


def test_a_plan_seeded_vera_and_a_model_class_are_options_of_the_fleet(capsys, tiny_bert, tmp_path):
    plan = tmp_path / "plan.json"
    call_json(capsys, "plan", str(tiny_bert), "--like-rank", "4", "--targets", "all-linear", "--out", str(plan))
    options = ("--plan", str(plan), "--vera-seeded", "--task", "sequence-classification", "--rank", "vera=8")
    found = call_json(capsys, "fleet", str(tiny_bert), *options, "--versions", "2", "--loads", "1e6", "--egress", "0.09")
    rows = {row["method"]: row for row in found["methods"]}
    checkpoint, asked = Checkpoint.open(tiny_bert), {"targets": "all-linear", "task": "sequence-classification"}
    seeded = adapter_size(checkpoint, "vera", rank=8, options={"save_projection": False}, **asked)
    assert rows["vera"]["file_bytes"] == seeded.file_bytes
    assert rows["lora"]["file_bytes"] == adapter_size(checkpoint, "lora", **asked).file_bytes
    assert rows["lora-xs"]["trainable"] == json.loads(plan.read_text())["trainable"]
    assert rows["lora"]["cost_per_month"] == pytest.approx(
        2000 * rows["lora"]["file_bytes"] * 0.023e-9 + 0.4 + rows["lora"]["file_bytes"] * 0.09e-3
    )


def test_scenarios_are_saved_and_found_by_name(capsys, own_folders, minilm):
    first = call_json(capsys, "fleet", "minilm", "--methods", "lora,lora-xs", "--adapters", "7", "--save", "my fleet")
    assert call_json(capsys, "fleet", "--scenario", "my fleet") == first
    code, _, err = call(capsys, "fleet", "minilm", "--save", "my fleet")
    assert code == 2
    assert "my fleet already" in err
    assert "my fleet" in call(capsys, "fleet", "--scenario", "nothing")[2]


def test_several_methods_with_a_rank_each(capsys):
    found = call_json(capsys, "size", "llama-3-8b", "--method", "full,psoft,ia3", "--rank", "psoft=4", "--rank", "psoft=5")
    assert [(row["method"], row["rank"]) for row in found["methods"]] == [("full", None), ("psoft", 5), ("ia3", None)]
    assert found["methods"][1]["trainable"] == 224 * (5 * 4 // 2 + 10)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer_of_a_run(capsys, optimizer):
    options = ("--method", "lora-xs", "--rank", "64", "--steps", "1000", "--optimizer", optimizer)
    run = call_json(capsys, "size", "llama-3-8b", *options)["run"]
    moment = 4 * 224 * 64**2
    at_least = {"sgd": 0, "sgd-momentum": moment, "adafactor": 224 * 128 * 4, "adamw-8bit": moment // 2}.get(
        optimizer, 2 * moment
    )
    assert at_least < run["optimizer"] < at_least + 224 * 1500
    assert call(capsys, "size", "llama-3-8b", *options)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fleet", "minilm", "--price", "-1"), "price per GB and month must be 0 or more, not -1"),
        (("fleet", "minilm", "--base-gib", "-1"), "memory taken by the base model must be 0 or more, not -1.0."),
        (("size", "minilm", "--optimizer", "lion"), "Unknown optimizer 'lion'; there are adamw"),  # also without --steps
        (("fleet", "minilm", "--egress", "-1"), "egress price"),
        (("fleet", "minilm", "--request-price", "nan"), "price per 1,000 loads"),
        (("fleet", "minilm", "--loads", "-5"), "number of loads"),
        (("fleet", "minilm", "--versions", "0"), "number of versions"),
        (("fleet", "minilm", "--link", "0"), "speed of the link"),
        (("fleet", "minilm", "--memory", "0"), "memory for adapters"),
        (("fleet", "minilm", "--base-gib", "-1"), "taken by the base model"),
        (("fleet", "minilm", "--adapters", "0"), "number of adapters must be a whole number of at least 1, not 0"),
        (("fleet", "minilm", "--adapters", "9" * 25), "beyond what is counted"),
        (("fleet", "minilm", "--rank", "lora-xs=900"), "Rank 900 is larger than the matrix"),
        (("fleet", "minilm", "--rank", "dora=4"), "--rank takes RANK or METHOD=RANK"),
        (("fleet", "minilm", "--rank", "²"), "--rank takes RANK or METHOD=RANK"),
        (("fleet", "minilm", "--methods", "magic"), "Unknown method 'magic'"),
        (("fleet", "minilm", "--methods", ","), "at least one method"),
        (("fleet", "minilm", "--dtype", "int8"), "Unknown dtype 'int8'"),
        (("fleet", "minilm", "--task", "chess"), "Unknown task 'chess'"),
        (("fleet", "minilm", "--save", "a:b"), "cannot be the name of a scenario"),
        (("fleet", "--scenario", "nothing"), "There is no scenario 'nothing'"),
        (("fleet", "--scenario", "{broken}"), "broken.json is not valid JSON"),
        (("fleet", "--scenario", "{elsewhere}"), "nobody/no-such-model is not on this machine"),
        (("size", "minilm", "--steps", "10", "--optimizer", "lion"), "Unknown optimizer 'lion'"),
        (("size", "minilm", "--keep", "0"), "number of checkpoints kept must be a whole number of at least 1"),
        (("size", "minilm", "--save-every", "0"), "save interval must be a whole number of at least 1"),
        (("fleet", "minilm", "--save", "{folder}/name"), "name should end in .json"),
        (("fleet", "minilm", "--save", "{folder}/name.csv"), "name should end in .json"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, own_folders, tmp_path, arguments, says):
    (tmp_path / "broken.json").write_text('{"model": ')
    Scenario("nobody/no-such-model").save(tmp_path / "elsewhere.json")
    files = {f"{{{name}}}": str(tmp_path / f"{name}.json") for name in ("broken", "elsewhere")}
    words = (files.get(word, word).replace("{folder}", str(tmp_path / "new")) for word in arguments)
    code, out, err = call(capsys, *words)
    assert not (tmp_path / "new").exists()
    assert code == 2, err
    assert out == ""
    assert says in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
