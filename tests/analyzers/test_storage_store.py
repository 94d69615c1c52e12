"""A fleet in a store, by the measured figures."""

from __future__ import annotations

from analyzers.storage import Scenario, in_store
from analyzers.storage.store import measured


def test_a_fleet_in_a_store_is_its_numbers_and_the_measured_overhead(minilm):
    scenario = Scenario(
        "minilm", ("lora-xs",), {"lora-xs": 16}, targets="all-linear", dtype="bfloat16", adapters=1000, versions=3
    )
    size = scenario.size(minilm, "lora-xs")
    found = in_store(scenario, size)
    numbers = 36 * 16 * 16 * 2 * 3000
    assert found.bytes == round(numbers * (1 + measured()["overhead"]))
    assert numbers < found.bytes < scenario.fleet(size).fleet_bytes


def test_the_figures_meet_what_the_store_is_to_do():
    found = measured()
    assert found["overhead"] <= 0.01
    assert found["get_warm_processor_ms_p99"] < 1
