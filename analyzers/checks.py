"""Numbers that people type, checked with one sentence each."""

from __future__ import annotations

import math

from loraxs_core.errors import SettingsError, WorkbenchError


def whole(value: float, what: str, *, error: type[WorkbenchError] = SettingsError) -> int:
    """`value` as an int. Raises `error` unless it is a whole number of at least 1. `what` begins the sentence."""
    if isinstance(value, bool) or not math.isfinite(value) or int(value) != value or value < 1:
        raise error(f"{what} must be a whole number of at least 1, not {value}.")
    return int(value)


def not_negative(value: float, what: str, *, error: type[WorkbenchError] = SettingsError) -> float:
    """`value` as a float. Raises `error` unless it is a finite number of 0 or more."""
    if isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise error(f"{what} must be 0 or more, not {value}.")
    return float(value)


def positive(value: float, what: str, *, error: type[WorkbenchError] = SettingsError) -> float:
    """`value` as a float. Raises `error` unless it is a finite number above 0."""
    if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise error(f"{what} must be a positive number, not {value}.")
    return float(value)
