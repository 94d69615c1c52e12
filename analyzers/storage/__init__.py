"""Bytes on disk: one adapter to the byte, fleets of them, and what keeping them costs. Without weights, without a GPU."""

from analyzers.storage.breakeven import BreakEven, break_even
from analyzers.storage.fleet import FleetCost, fleet_cost, load_seconds, resident_adapters
from analyzers.storage.run import OPTIMIZERS, RunBytes, run_bytes
from analyzers.storage.scenario import SCENARIOS, Scenario
from analyzers.storage.size import TASKS, AdapterSize, adapter_size

__all__ = [
    "OPTIMIZERS",
    "SCENARIOS",
    "TASKS",
    "AdapterSize",
    "BreakEven",
    "FleetCost",
    "RunBytes",
    "Scenario",
    "adapter_size",
    "break_even",
    "fleet_cost",
    "load_seconds",
    "resident_adapters",
    "run_bytes",
]
