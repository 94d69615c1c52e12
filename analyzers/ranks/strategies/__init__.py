"""The strategies. Adding one is adding a file here with `STRATEGY` in it; nothing else is edited."""

from __future__ import annotations

from analyzers.ranks.strategies.strategy import Layer, Strategy, measured
from loraxs_core.errors import PlanError
from loraxs_core.registry import found

FIRST = ("role", "uniform", "energy")
STRATEGIES: dict[str, Strategy] = found(__name__, "STRATEGY", first=FIRST)


def strategy(name: str) -> Strategy:
    """The strategy called `name`. Raises PlanError listing those there are."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise PlanError(f"Unknown strategy {name!r}; there are {', '.join(STRATEGIES)}.") from None


__all__ = ["STRATEGIES", "Layer", "Strategy", "measured", "strategy"]
