"""Cost, on disk: exact bytes, fleets, and the plan in use."""

from __future__ import annotations

import pytest

from app import state
from loraxs_core.checkpoint import Checkpoint
from tests.app.pages import go, healthy, page, texts

pytestmark = pytest.mark.usefixtures("fresh_page")


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
    assert f"{row['trained numbers']:,}" == trained
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
