"""Numbers that people type, checked with one sentence each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from loraxs_core.errors import SettingsError, WorkbenchError


def whole(value: float, what: str, *, error: type[WorkbenchError] = SettingsError) -> int:
    """`value` as an int. Raises `error` unless it is a whole number of at least 1. `what` begins the sentence."""
    if not _finite(value) or int(value) != value or value < 1:
        raise error(f"{what} must be a whole number of at least 1, not {shown(value)}.")
    return int(value)


def not_negative(value: float, what: str, *, error: type[WorkbenchError] = SettingsError) -> float:
    """`value` as a float. Raises `error` unless it is a finite number of 0 or more."""
    if not _finite(value) or value < 0:
        raise error(f"{what} must be 0 or more, not {shown(value)}.")
    return float(value)


def positive(value: float, what: str, *, error: type[WorkbenchError] = SettingsError) -> float:
    """`value` as a float. Raises `error` unless it is a finite number above 0."""
    if not _finite(value) or value <= 0:
        raise error(f"{what} must be a positive number, not {shown(value)}.")
    return float(value)


def texts(value: object, what: str) -> tuple[str, ...]:
    """`value`, a list of texts, as a tuple. Raises TypeError in words that begin with `what`."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{what} is no list of texts")
    return tuple(value)


def by_name(value: object, what: str) -> dict[str, Any]:
    """`value`, a mapping from names, as a dict. Raises TypeError in words that begin with `what`."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise TypeError(f"{what} is not names with values")
    return dict(value)


def _finite(value: object) -> bool:
    """Whether `value` is a number that a float can hold; what was read from a file may be anything."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def shown(value: object) -> str:
    """`value` in a sentence, however long it is."""
    text = str(value) if isinstance(value, Real) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
