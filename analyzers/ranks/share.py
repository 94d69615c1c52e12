"""Sharing a budget among layers: what a strategy thinks of every step, turned into ranks that use at least 99 % of it.

Two kinds of strategies. One that says what every step *gains* (`Strategy.additive`) goes to the solver, which finds the largest
sum. One that only says which step comes *first* goes to the allocator, which keeps layers of equal worth equal; where such a
regular plan leaves more than 1 % of the budget, single layers take one rank more, from the middle out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analyzers.ranks.allocate import allocate
from analyzers.ranks.solver import Choice, Solution, middle_out, solve
from analyzers.ranks.strategies import Layer, Strategy
from loraxs_core.errors import PlanError

ENOUGH = 0.99  # the share of the budget that a plan uses, wherever single ranks more or less allow it
NEAR = 0.005  # how close to the best order a strategy without gains is followed when its steps have other costs or limits
CHANGED = 0.25  # what a module that leaves the regular plan by one rank is charged, in trained numbers


@dataclass(frozen=True)
class Limits:
    """What one module may take. ranks: (n,) rising; the first is where it starts (0: it may be left out)."""

    ranks: np.ndarray

    @property
    def plain(self) -> bool:
        """Every rank from a first of at least 1 to the last: what the allocator knows."""
        return self.ranks[0] >= 1 and len(self.ranks) == self.ranks[-1] - self.ranks[0] + 1


@dataclass(frozen=True)
class Shared:
    """ranks: (modules,) int64. used: their cost. most: the largest cost within the budget that was found possible, where `used` is
    below 99 % of it: the same, but where gains that add up are worth more than a full budget."""

    ranks: np.ndarray
    used: int
    most: int


Cost = Callable[[Layer, np.ndarray], np.ndarray]  # (layer, ranks) -> what each rank costs, int64, rising


def squares(layer: Layer, ranks: np.ndarray) -> np.ndarray:
    """Trained numbers of LoRA-XS: r²."""
    return ranks.astype(np.int64) ** 2


def sides(layer: Layer, ranks: np.ndarray) -> np.ndarray:
    """Trained numbers of LoRA: r·(in + out)."""
    return ranks.astype(np.int64) * sum(layer.weight.shape)


def on_the_gpu(layer: Layer, ranks: np.ndarray) -> np.ndarray:
    """Bytes of a LoRA-XS adapter in training besides activations, in float32: A and B; R, its gradient and AdamW's two states."""
    return 4 * sides(layer, ranks) + 16 * squares(layer, ranks)


def share(
    layers: Sequence[Layer],
    chosen: Strategy,
    limits: Sequence[Limits],
    budget: int,
    cost: Cost = squares,
    groups: Sequence[int] | None = None,
) -> Shared:
    """Ranks within `limits` whose cost is at most `budget`.

    groups: (modules,) modules with the same number take the same rank. Raises PlanError when the least ranks exceed the budget, or
    the budget reaches a rank that the strategy cannot judge.
    """
    regular = groups is None and cost is squares and not chosen.additive and all(limit.plain for limit in limits)
    scores, cut = _judged(layers, chosen, limits)
    if regular:
        lower = [int(limit.ranks[0]) for limit in limits]
        ranks = allocate(scores, lower, budget).ranks
        ranks = fill(ranks, [low + len(steps) for low, steps in zip(lower, scores, strict=True)], scores, lower, budget)
        most = used = int((ranks**2).sum())
    else:
        ranks, used, most = _solved(layers, chosen, limits, scores, budget, cost, groups)
    for layer, limit, steps, rank, is_cut in zip(layers, limits, scores, ranks.tolist(), cut, strict=True):
        if is_cut and rank >= limit.ranks[0] + len(steps):
            raise _not_judged(layer, chosen, rank)
    return Shared(ranks, used, most)


def _judged(layers: Sequence[Layer], chosen: Strategy, limits: Sequence[Limits]) -> tuple[list[np.ndarray], list[bool]]:
    """(scores of the steps from each layer's least rank on, as far as they are known; whether some are not)."""
    scores, cut = [], []
    for layer, limit in zip(layers, limits, strict=True):
        judged = chosen.score(layer, np.arange(limit.ranks[0], limit.ranks[-1]))
        known = int(np.argmax(np.isnan(judged))) if np.isnan(judged).any() else len(judged)
        scores.append(np.asarray(judged[:known], dtype=np.float64))
        cut.append(known < len(judged))
    return scores, cut


def _not_judged(layer: Layer, chosen: Strategy, rank: int) -> PlanError:
    """The budget reaches a step that the strategy cannot judge; any rank above would be made up."""
    rank = min(rank, layer.known)
    return PlanError(
        f"The {chosen.name!r} strategy cannot say what more than rank {rank} is worth in {layer.weight.name}, of which it has "
        f"{layer.known} of {layer.weight.full_rank} singular values; scan the whole of them, or set the largest rank to {rank} at most."
        if layer.spectrum
        else f"The {chosen.name!r} strategy was measured up to rank {rank} in {layer.weight.name}; set the largest rank to {rank} at "
        "most, or measure with a larger one."
    )


def fill(ranks: np.ndarray, most: Sequence[int], scores: Sequence[np.ndarray], lower: Sequence[int], budget: int) -> np.ndarray:
    """`ranks` with as few single ranks more as use 99 % of `budget` in squares: the best step first, of equals the middle layer.

    Where no such steps fit, ranks move up and down as little as that takes.
    """
    used = int((ranks**2).sum())
    if used >= ENOUGH * budget:
        return ranks
    place = middle_out(len(ranks))
    raised = ranks.copy()
    open_ = [index for index in range(len(ranks)) if ranks[index] < most[index]]
    for index in sorted(open_, key=lambda one: (-scores[one][ranks[one] - lower[one]], place[one])):
        price = 2 * int(ranks[index]) + 1
        if used + price <= budget:
            raised[index] += 1
            used += price
            if used >= ENOUGH * budget:
                return raised
    every = [np.arange(low, high + 1) for low, high in zip(lower, most, strict=True)]
    choices = [Choice(one, np.zeros(len(one)), one**2) for one in every]
    other = fullest(choices, ranks - np.asarray(lower), budget, place)
    return other.ranks if other.cost > used else raised


def fullest(choices: Sequence[Choice], picks: np.ndarray, budget: int, place: np.ndarray) -> Solution:
    """What uses 99 % of `budget` near the entries `picks` of `choices`: by one entry up or down, else two, four, any; where nothing does,
    what uses most, wherever that is."""
    widest = max(len(choice.ranks) for choice in choices)
    reach = 1
    while True:
        near, first = [], np.maximum(picks - reach, 0)
        for choice, pick, low in zip(choices, picks.tolist(), first.tolist(), strict=True):
            kept = slice(low, pick + reach + 1)
            moved = np.abs(np.arange(len(choice.ranks))[kept] - pick)
            near.append(Choice(choice.ranks[kept], choice.costs[kept] - CHANGED * moved, choice.costs[kept]))
        found = solve(near, budget, place=place)
        if found.cost >= ENOUGH * budget:
            return found
        if reach >= widest:
            return solve(
                [Choice(choice.ranks, choice.costs.astype(np.float64), choice.costs) for choice in choices], budget, place=place
            )
        reach *= 2


def _solved(
    layers: Sequence[Layer],
    chosen: Strategy,
    limits: Sequence[Limits],
    scores: Sequence[np.ndarray],
    budget: int,
    cost: Cost,
    groups: Sequence[int] | None,
) -> tuple[np.ndarray, int, int]:
    """(ranks, what they cost, the largest cost found possible); see `Shared`."""
    number = list(range(len(layers)) if groups is None else groups)
    worth = scores if chosen.additive else _ordered(scores)
    members: list[list[int]] = [[] for _ in range(max(number) + 1)]
    for index, group in enumerate(number):
        members[group].append(index)
    paid = []
    for layer, limit, steps in zip(layers, limits, worth, strict=True):
        from_ = int(limit.ranks[0])
        over = np.arange(from_, from_ + len(steps))
        prices = 2 * over + 1 if chosen.additive else np.diff(cost(layer, np.arange(from_, from_ + len(steps) + 1)))
        paid.append(np.concatenate([[0.0], np.cumsum(steps * prices)]))
    choices = [_together([(layers[one], limits[one], paid[one]) for one in group], cost) for group in members]
    least = sum(int(choice.costs[0]) for choice in choices)
    if least > budget:
        raise PlanError(
            f"The budget of {budget:,} is below what the least ranks of these {len(layers)} layers cost ({least:,}); raise it, lower the "
            "least ranks or pins, or name fewer target modules."
        )
    place = middle_out(len(choices))
    found = solve(choices, budget, place=place, tolerance=1e-9 if chosen.additive else NEAR)
    most = found.cost
    if found.cost < ENOUGH * budget:
        other = fullest(choices, found.picks, budget, place)
        most = max(most, other.cost)
        if not chosen.additive and other.cost > found.cost:
            found = other
    return found.ranks[np.array(number)], found.cost, most


def _together(members: Sequence[tuple[Layer, Limits, np.ndarray]], cost: Cost) -> Choice:
    """The choice of modules that share a rank. members: layer, limits, and what each rank from the least on gains."""
    ranks = members[0][1].ranks
    for _, limit, gained in members:
        within = limit.ranks[limit.ranks < limit.ranks[0] + len(gained)]
        ranks = np.intersect1d(ranks, within)
    if not len(ranks):
        names = ", ".join(layer.weight.name for layer, _, _ in members[:2])
        raise PlanError(f"No rank is allowed in all of {names} and the others that share it; change their limits or pins.")
    gains = np.sum([gained[ranks - limit.ranks[0]] for _, limit, gained in members], axis=0)
    return Choice(ranks, gains, np.sum([cost(layer, ranks) for layer, _, _ in members], axis=0))


def _ordered(scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Positive prices per unit of cost, in the order of `scores`, so that the order alone decides whatever steps cost."""
    falling = [np.minimum.accumulate(steps) if len(steps) else steps for steps in scores]
    if not sum(map(len, falling)):
        return falling
    _, level = np.unique(np.concatenate(falling), return_inverse=True)
    return list(np.split(level + 1.0, np.cumsum([len(steps) for steps in falling])[:-1]))
