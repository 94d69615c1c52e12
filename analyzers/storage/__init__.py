"""Bytes on disk: one adapter to the byte, fleets of them, and what keeping them costs. Without weights, without a GPU.

Checkpoint, SizeSettings  ->  layers and ranks  ->  Method.written, or PEFT itself on the meta device  ->  AdapterSize
AdapterSize  ->  fleet_cost, run_bytes, break_even;  Scenario asks all of it at once and is kept in a file
"""

from analyzers.storage.breakeven import BreakEven, break_even
from analyzers.storage.fleet import FleetCost, fleet_cost, load_seconds, resident_adapters
from analyzers.storage.optimizer_state import OPTIMIZERS
from analyzers.storage.run import RunBytes, check_run, run_bytes
from analyzers.storage.saved import find_scenario, forget_scenario, keep_scenario, own_names, scenario_names
from analyzers.storage.scenario import SCENARIOS, Scenario
from analyzers.storage.sentences import what_weighs
from analyzers.storage.size import TASKS, AdapterSize, SizeSettings, adapter_size
from analyzers.storage.store import InStore, in_store

__all__ = [
    "OPTIMIZERS",
    "SCENARIOS",
    "TASKS",
    "AdapterSize",
    "BreakEven",
    "FleetCost",
    "InStore",
    "RunBytes",
    "Scenario",
    "SizeSettings",
    "adapter_size",
    "break_even",
    "check_run",
    "find_scenario",
    "fleet_cost",
    "forget_scenario",
    "in_store",
    "keep_scenario",
    "load_seconds",
    "own_names",
    "resident_adapters",
    "run_bytes",
    "scenario_names",
    "what_weighs",
]
