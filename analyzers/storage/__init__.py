"""Bytes on disk: one adapter to the byte, fleets of them, and what keeping them costs. Without weights, without a GPU."""

from analyzers.storage.fleet import FleetCost, fleet_cost
from analyzers.storage.size import TASKS, AdapterSize, adapter_size

__all__ = ["TASKS", "AdapterSize", "FleetCost", "adapter_size", "fleet_cost"]
