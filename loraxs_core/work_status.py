"""How work in the background is doing, as its status.json says it: read with care, since anything may stand in a file."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self


class State(StrEnum):
    """How work in the background is doing. Crashed: its process is gone without a word."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CRASHED = "crashed"

    @property
    def is_running(self) -> bool:
        return self in (State.STARTING, State.RUNNING)

    @property
    def can_be_resumed(self) -> bool:
        return not self.is_running and self is not State.DONE


@dataclass(frozen=True)
class Status:
    """fraction: of all work. eta_seconds: time left at the rate so far. error: one sentence when it failed or crashed.
    pid, process_started, boot: the process (`processes.identity`). detached: whether that process does nothing else.
    started, updated: Unix seconds."""

    state: State
    message: str = ""
    error: str = ""
    fraction: float = 0.0
    eta_seconds: float | None = None
    pid: int | None = None
    process_started: float | None = None
    boot: str | None = None
    detached: bool = False
    started: float | None = None
    updated: float | None = None

    @property
    def is_running(self) -> bool:
        return self.state.is_running

    @classmethod
    def from_document(cls, document: dict) -> Self:
        """Raises ValueError naming the first entry that no status has; entries that are not known here are left out."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name in document:
                found[field.name] = _checked(field.name, str(field.type), document[field.name])
        if "state" not in found:
            raise ValueError("state is missing")
        status = cls(**found)
        if not 0 <= status.fraction <= 1 or (status.eta_seconds or 0) < 0:
            raise ValueError("its progress is no share of the work")
        return status


def process_of(document: dict) -> dict:
    """What a document says of a process (`processes.identity`), and of the one that started it; empty where that is no such thing."""
    kinds = {"pid": "int | None", "process_started": "float | None", "boot": "str | None", "memory_kills": "int | None"}
    try:
        found = {name: _checked(name, kind, document[name]) for name, kind in kinds.items() if name in document}
    except ValueError:
        return {}
    starter = document.get("starter")
    return found | ({"starter": process_of(starter)} if isinstance(starter, dict) and "starter" not in starter else {})


def _checked(name: str, kind: str, value: object) -> Any:
    """`value` as the field `name` declares it. Raises ValueError in words."""
    kind, _, optional = kind.partition(" | ")
    if value is None and optional:
        return None
    if kind == "State":
        if isinstance(value, str) and value in set(State):
            return State(value)
    elif kind == "float":
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)
    elif type(value) is {"str": str, "int": int, "bool": bool}[kind]:
        return value
    text = repr(value)
    raise ValueError(f"{name} is {text if len(text) <= 40 else text[:37] + '...'}")
