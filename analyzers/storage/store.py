"""What a fleet takes in a store (`loraxs_core.store`) instead of files of its own: the figures that `benchmarks/fleet.py` measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from analyzers.storage.scenario import Scenario
from analyzers.storage.size import AdapterSize

MEASURED = Path(__file__).with_name(
    "store_measured.json"
)  # python -m benchmarks.fleet --json analyzers/storage/store_measured.json


@dataclass(frozen=True)
class InStore:
    """A fleet in a store. bytes: that it takes, copies and versions included. overhead: bytes beyond the numbers, as a share of them.
    get_ms, get_processor_ms_p99: milliseconds to read one and check it, the median by the clock and 99 of 100 in processor time.
    measured: how many adapters it was measured with. row_bytes: of each of those."""

    bytes: int
    overhead: float
    get_ms: float
    get_processor_ms_p99: float
    measured: int
    row_bytes: int


@cache
def measured() -> dict[str, float]:
    """What the benchmark wrote of its store."""
    return json.loads(MEASURED.read_text(encoding="utf-8"))["store"]


def in_store(scenario: Scenario, size: AdapterSize) -> InStore:
    """The fleet of `scenario` in a store, for adapters of `size`: their numbers and the measured overhead. The proof is kept once."""
    found = measured()
    rows = scenario.adapters * scenario.replicas * scenario.versions
    return InStore(
        round(rows * size.resident_bytes * (1 + found["overhead"])),
        found["overhead"],
        found["get_warm_ms_p50"],
        found["get_warm_processor_ms_p99"],
        int(found["adapters"]),
        int(found["row_bytes"]),
    )
