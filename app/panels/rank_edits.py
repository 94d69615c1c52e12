"""The ranks that a person changed in a plan, with the way back: kept for the session, apart from what is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import streamlit as st

from analyzers.plans import RankPlan
from app import state

KEPT = 20  # plans whose changes are kept


@dataclass
class Edits:
    """steps: the changed ranks (name -> rank) after every step; at: the one that holds. version: counts what happened outside the
    table, which starts anew then, from `base`: the table itself must not change under the hands of somebody who types into it."""

    steps: list[dict[str, int]] = field(default_factory=lambda: [{}])
    at: int = 0
    version: int = 0
    base: dict[str, int] = field(default_factory=dict)

    @property
    def now(self) -> dict[str, int]:
        return self.steps[self.at]

    def put(self, changed: dict[str, int]) -> None:
        """The next step; what had been taken back is gone."""
        if changed != self.now:
            self.steps[self.at + 1 :] = [changed]
            self.at += 1

    def go(self, by: int) -> None:
        """Back (-1) or forward (1)."""
        self.at = min(max(self.at + by, 0), len(self.steps) - 1)
        self.restart()

    def restart(self) -> None:
        """The table begins again with what holds now."""
        self.version += 1
        self.base = dict(self.now)


def of(made: RankPlan) -> Edits:
    """Those of a plan as it was made."""
    known: dict[str, Edits] = st.session_state.setdefault("rank-edits", {})
    edits = known.setdefault(state.identity(made), Edits())
    while len(known) > KEPT:
        known.pop(next(iter(known)))
    return edits
