"""The strategies. Adding one is adding a file with a `Strategy` in it and naming it here."""

from __future__ import annotations

from analyzers.ranks.strategies import energy, role, uniform
from analyzers.ranks.strategies.strategy import Layer, Strategy
from loraxs_core.errors import PlanError

STRATEGIES: dict[str, Strategy] = {entry.name: entry for entry in (role.STRATEGY, uniform.STRATEGY, energy.STRATEGY)}

DEFAULT = role.STRATEGY.name


def strategy(name: str) -> Strategy:
    """The strategy called `name`. Raises PlanError listing those there are."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise PlanError(f"Unknown strategy {name!r}; there are {', '.join(STRATEGIES)}.") from None


__all__ = ["DEFAULT", "STRATEGIES", "Layer", "Strategy", "strategy"]
