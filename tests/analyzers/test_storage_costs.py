"""The paper's figures, fleets and break-even ranks."""

from __future__ import annotations

import math

import pytest

from analyzers.ranks import Budget, make_plan
from analyzers.storage import (
    SCENARIOS,
    adapter_size,
    break_even,
    fleet_cost,
    load_seconds,
    resident_adapters,
    run_bytes,
)
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError, SettingsError, WorkbenchError
from sample_models import open_model


@pytest.fixture(scope="module")
def roberta():
    return open_model("roberta-large")


@pytest.fixture(scope="module")
def llama():
    return open_model("llama-3-8b")


@pytest.mark.parametrize(
    ("model", "rank", "trainable"),
    [
        *[
            ("roberta-large", rank, count)
            for rank, count in ((4, 1_536), (8, 6_144), (12, 13_824), (16, 24_576), (20, 38_400), (25, 60_000))
        ],
        *[("llama-3-8b", rank, count) for rank, count in ((32, 229_376), (64, 917_504), (96, 2_064_384), (128, 3_670_016))],
        ("mistral-7b", 64, 917_504),
        ("gemma-7b", 64, 802_816),
    ],
)
def test_the_papers_parameter_counts(model, rank, trainable):
    assert adapter_size(open_model(model), "lora-xs", rank=rank).trainable == trainable


def test_counts_of_the_other_methods(roberta, llama):
    assert adapter_size(roberta, "lora", rank=8, targets="query,value").trainable == 786_432  # LoRA, table 2: 0.8M
    assert adapter_size(roberta, "vera", rank=256, targets="query,value").trainable == 48 * (1024 + 256)  # VeRA: 61K
    assert adapter_size(llama, "lora", rank=16).trainable == 41_943_040
    assert adapter_size(llama, "full").trainable == 8_030_261_248


def test_the_papers_million_users():
    scenario = SCENARIOS["gpt-3-one-million-users"]
    frame = scenario.frame(open_model(scenario.model)).set_index("method")
    lora, xs = frame.loc["lora"], frame.loc["lora-xs"]
    assert lora["number_bytes"] == 144 * 2**20
    assert xs["number_bytes"] == 96 * 2**10
    assert lora["fleet_bytes"] == 1_000_000 * lora["file_bytes"] > 1_000_000 * 144 * 2**20
    assert 150e3 < lora["fleet_gb"] < 152e3
    assert 98.3 < xs["fleet_gb"] < 200
    assert xs["fleet_bytes"] / lora["fleet_bytes"] < 1 / 700
    assert frame.loc["full", "resident"] == 0
    assert xs["resident"] > 100 * lora["resident"]


def test_the_cost_of_a_fleet_by_hand():
    fleet = fleet_cost(
        5_000_000,
        adapters=200,
        replicas=3,
        versions=2,
        price_per_gb_month=0.02,
        loads_per_month=10_000,
        price_per_1000_loads=0.4,
        egress_price_per_gb=0.1,
    )
    assert fleet.files == 1_200
    assert fleet.fleet_bytes == 6_000_000_000
    assert fleet.fleet_gb == 6
    assert fleet.fleet_gib == pytest.approx(5.5879, abs=1e-4)
    assert fleet.storage_per_month == pytest.approx(0.12)
    assert fleet.requests_per_month == pytest.approx(4)
    assert fleet.egress_per_month == pytest.approx(5)
    assert fleet.cost_per_month == pytest.approx(9.12)
    assert fleet_cost(98_304, adapters=10**9).fleet_bytes == 98_304 * 10**9


def test_loading_and_keeping_adapters(llama):
    xs, lora = (adapter_size(llama, method, rank=16, dtype="bfloat16") for method in ("lora-xs", "lora"))
    assert load_seconds(125_000_000, gigabits_per_second=1) == pytest.approx(1)
    assert load_seconds(lora, gigabits_per_second=10, latency_ms=20) == pytest.approx(0.02 + lora.file_bytes * 8 / 1e10)
    base = 16_060_522_496
    memory = 24 * 2**30
    # by hand: 224 modules; A and B once, 41,943,040 numbers like a LoRA; then 57,344 numbers each
    assert xs.shared_bytes == 2 * 41_943_040
    assert resident_adapters(xs, memory, base_bytes=base) == (memory - base - 2 * 41_943_040) // (2 * 57_344)
    assert resident_adapters(lora, memory, base_bytes=base) == (memory - base) // (2 * 41_943_040)
    assert resident_adapters(xs, 2**20, base_bytes=2**21) == 0


def test_shared_numbers_of_traced_methods_are_frozen_ones(roberta):
    psoft = adapter_size(roberta, "psoft", rank=4)
    assert psoft.shared == adapter_size(roberta, "lora-xs", rank=4).shared  # the same A and B
    assert adapter_size(roberta, "dora", rank=4).shared == 0
    assert adapter_size(roberta, "ia3").shared == 0


@pytest.mark.parametrize(("method", "rank"), [("lora", 1), ("lora", 16), ("vera", 256), ("ia3", None)])
def test_break_even_is_the_last_rank_that_is_no_larger(llama, method, rank):
    found = break_even(llama, method, rank=rank)
    assert found.size.file_bytes <= found.against.file_bytes
    assert adapter_size(llama, "lora-xs", rank=found.rank_by_bytes + 1).file_bytes > found.against.file_bytes
    assert 224 * found.rank_by_trainable**2 <= found.against.trainable < 224 * (found.rank_by_trainable + 1) ** 2
    assert f"up to rank {found.rank_by_bytes}, " in found.sentence


def test_break_even_at_its_ends(minilm):
    assert break_even(minilm, "full").rank_by_bytes == 384
    assert "at every rank" in break_even(minilm, "full").sentence
    tiny = break_even(minilm, "ia3", targets="encoder.layer.0.output.dense")
    assert tiny.rank_by_bytes >= 1
    seeded = break_even(
        minilm, "vera", rank=1, options={"save_projection": False}, targets="encoder.layer.0.attention.self.query"
    )
    assert seeded.against.trainable == 385


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda size, llama: adapter_size(llama, "magic"), "Unknown method 'magic'"),
        (lambda size, llama: adapter_size(llama, "lora", task="chess"), "Unknown task 'chess'"),
        (lambda size, llama: adapter_size(llama, "lora", dtype="float3"), "Unknown dtype 'float3'"),
        (lambda size, llama: adapter_size(llama, "lora", rank=0), "at least 1, not 0"),
        (lambda size, llama: adapter_size(llama, "lora-xs", rank=1025), "Rank 1025 is larger than the matrix"),
        (
            lambda size, llama: adapter_size(llama, "lora", modules_to_save=["nowhere"]),
            "No module of llama-3-8b ends in 'nowhere'",
        ),
        (lambda size, llama: adapter_size(llama, "head-only"), "needs a task with a head"),
        (
            lambda size, llama: adapter_size(llama, "lora", task="question-answering", targets="lm_head"),
            "has no module lm_head",
        ),
        (lambda size, llama: fleet_cost(size, adapters=0), "adapters must be a whole number of at least 1, not 0"),
        (lambda size, llama: fleet_cost(size, adapters=1.5), "whole number"),
        (lambda size, llama: fleet_cost(size, adapters=math.inf), "whole number"),
        (lambda size, llama: fleet_cost(size, adapters=10**400), "whole number"),
        (lambda size, llama: fleet_cost(size, adapters="many"), "whole number of at least 1, not 'many'"),
        (lambda size, llama: fleet_cost(size, adapters=10**19), "beyond what is counted"),
        (lambda size, llama: adapter_size(llama, "lora", rank=10**30), "larger than any matrix"),
        (lambda size, llama: adapter_size(llama, "lora", dtype="int8"), "Unknown dtype 'int8'"),
        (lambda size, llama: adapter_size(llama, "psoft", rank=1025), "Rank 1025 is larger than the matrix"),
        (lambda size, llama: fleet_cost(size, adapters=1, replicas=0), "replicas must be"),
        (
            lambda size, llama: fleet_cost(size, adapters=1, price_per_gb_month=-0.01),
            "price per GB and month must be 0 or more",
        ),
        (lambda size, llama: fleet_cost(size, adapters=1, loads_per_month=-1), "loads per month must be 0 or more"),
        (
            lambda size, llama: fleet_cost(size, adapters=1, egress_price_per_gb=math.nan),
            "egress price per GB must be 0 or more",
        ),
        (lambda size, llama: load_seconds(size, gigabits_per_second=0), "speed of the link must be a positive number"),
        (lambda size, llama: resident_adapters(size, -1), "memory must be a positive number"),
        (lambda size, llama: run_bytes(size, steps=0, save_every=1), "number of steps"),
        (lambda size, llama: run_bytes(size, steps=1, save_every=1, optimizer="lion"), "Unknown optimizer 'lion'"),
        (lambda size, llama: run_bytes(size, steps=1, save_every=1, keep=0), "checkpoints kept"),
    ],
)
def test_impossible_questions_get_one_sentence(llama, ask, message):
    size = adapter_size(llama, "lora-xs", rank=4)
    with pytest.raises(WorkbenchError, match=message) as caught:
        ask(size, llama)
    assert "\n" not in str(caught.value)


def test_a_plan_and_a_rank_exclude_each_other(llama, roberta):
    plan = make_plan(roberta, budget=Budget.like_rank(4))
    with pytest.raises(SettingsError, match="not both"):
        adapter_size(roberta, rank=4, plan=plan)
    with pytest.raises(PlanError, match="was made for roberta-large"):
        adapter_size(llama, plan=plan)


def test_a_folder_without_config_still_has_a_file_size(tiny_llama, tmp_path):
    whole = Checkpoint.open(tiny_llama)
    (tmp_path / "model.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes())
    bare = Checkpoint.open(tmp_path)
    for method in ("lora", "lora-xs"):
        size = adapter_size(bare, method, rank=4)
        assert size.file_bytes == size.folder_bytes == adapter_size(whole, method, rank=4).file_bytes
    with pytest.raises(WorkbenchError, match="has no config"):
        adapter_size(bare, "lora", rank=4, task="causal-lm")
