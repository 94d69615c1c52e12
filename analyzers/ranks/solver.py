"""One general solver for ranks under a budget: maximise Σ gain_i(rank_i) while Σ cost_i(rank_i) <= budget.

Each module (or group of modules that share a rank) is a `Choice`: the ranks it may take, what each is worth, what each costs. That
covers any separable cost (r², r·(in + out), bytes) and any limit on single modules (least, most, multiples, pinned, left out). It is
the multiple-choice knapsack, solved as Pisinger does ("A minimal algorithm for the multiple-choice knapsack problem", EJOR 1995):
steps along the upper hull of every module's (cost, gain) in the order of gain per cost give a plan and a bound on every other plan
(Sinha & Zoltners, Operations Research 1979); where the two differ, dynamic programming over the modules that could close the
difference, all other states pruned by the bound. Concave gains at a budget that their steps exhaust need the first part alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_STATES = (
    20_000  # of the dynamic programme; beyond them the best by their bound are kept and the result says how far it may be off
)
MOST_WORK = 3_000_000  # states times options looked at, which bounds the time of a hopeless proof


@dataclass(frozen=True)
class Choice:
    """What one module may take. ranks: (n,) int64, rising. gains: (n,) float64, what each is worth. costs: (n,) int64, rising.

    Raises ValueError for arrays that differ in length, costs that do not rise, or gains that are not finite.
    """

    ranks: np.ndarray
    gains: np.ndarray
    costs: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.ranks) or not len(self.ranks) == len(self.gains) == len(self.costs):
            raise ValueError("a choice needs as many gains and costs as ranks, and at least one")
        if (np.diff(self.costs) <= 0).any() or self.costs[0] < 0 or not np.isfinite(self.gains).all():
            raise ValueError("the costs of a choice rise and its gains are finite")


@dataclass(frozen=True)
class Solution:
    """ranks: (modules,) int64. picks: which entry of each choice that is. gain, cost: their sums. bound: no plan within the budget
    is worth more (equal to `gain`, but for rounding, where the plan is proven best)."""

    ranks: np.ndarray
    picks: np.ndarray
    gain: float
    cost: int
    bound: float


@dataclass(frozen=True)
class _Table:
    """All choices in flat arrays. owner: whose entry. first: where each choice begins."""

    owner: np.ndarray
    gain: np.ndarray
    cost: np.ndarray
    first: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, choices: Sequence[Choice]) -> _Table:
        lengths = np.array([len(choice.ranks) for choice in choices])
        return cls(
            owner=np.repeat(np.arange(len(choices)), lengths),
            gain=np.concatenate([choice.gains for choice in choices]).astype(np.float64),
            cost=np.concatenate([choice.costs for choice in choices]).astype(np.int64),
            first=np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64),
            ranks=np.concatenate([choice.ranks for choice in choices]).astype(np.int64),
        )

    def solution(self, entries: np.ndarray, bound: float) -> Solution:
        gain = float(self.gain[entries].sum())
        return Solution(self.ranks[entries], entries - self.first, gain, int(self.cost[entries].sum()), max(bound, gain))


def middle_out(count: int) -> np.ndarray:
    """(count,) place of each module when those in the middle come first: who of equals is served before the others.

    >>> middle_out(5).tolist()
    [3, 1, 0, 2, 4]
    """
    place = np.empty(count, dtype=np.int64)
    place[np.argsort(np.abs(np.arange(count) - (count - 1) / 2), kind="stable")] = np.arange(count)
    return place


def solve(choices: Sequence[Choice], budget: int, *, tolerance: float = 1e-9, place: np.ndarray | None = None) -> Solution:
    """The plan of largest Σ gain with Σ cost <= budget.

    tolerance: how far, as a share of the bound, the gain may stay below it. place: who of equals comes first; the middle when left
    out. The same input gives the same plan. Steps that lose are not taken. Raises ValueError when the cheapest entries together
    exceed the budget.
    """
    table = _Table.of(choices)
    if int(table.cost[table.first].sum()) > budget:
        raise ValueError("the cheapest ranks exceed the budget")
    whole, entries, price = _along_the_hull(table, budget, middle_out(len(choices)) if place is None else place)
    bound = float(table.gain[whole].sum()) + price * (budget - int(table.cost[whole].sum()))
    entries = _topped_up(table, entries, budget)
    value = float(table.gain[entries].sum())
    if bound - value > tolerance * abs(bound):
        better, proven = _closed_gap(table, whole, price, budget, bound, value)
        entries = entries if better is None else better
        bound = float(table.gain[entries].sum()) if proven else bound
    return table.solution(entries, bound)


def _hull(table: _Table) -> np.ndarray:
    """The entries on each choice's upper hull, in order: gain per cost falls from one to the next, and never below 0.

    An entry below the line between its neighbours is below the hull, so all of those go at once, until none is left.
    """
    kept = np.arange(len(table.owner))
    while True:
        same = table.owner[kept[1:]] == table.owner[kept[:-1]]
        ratio = np.full(len(kept) + 1, np.nan)  # of the step into each entry; NaN at the ends of a choice
        steps = table.cost[kept[1:]] - table.cost[kept[:-1]]
        np.divide(table.gain[kept[1:]] - table.gain[kept[:-1]], steps, out=ratio[1:-1], where=same)
        losing = ~(ratio[:-1] >= 0) & ~np.isnan(ratio[:-1])
        below = ratio[:-1] < ratio[1:]
        if not (below | losing).any():
            return kept
        kept = kept[~(below | losing)] if below.any() else kept[~losing]


def _along_the_hull(table: _Table, budget: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(entries after all steps up to the first that does not fit, entries after those later ones that do, the first one's price)."""
    kept = _hull(table)
    into = np.flatnonzero(table.owner[kept[1:]] == table.owner[kept[:-1]]) + 1
    target, owner = kept[into], table.owner[kept[into]]
    cost = table.cost[target] - table.cost[kept[into - 1]]
    ratio = (table.gain[target] - table.gain[kept[into - 1]]) / cost
    order = np.lexsort((target, place[owner], -ratio))
    left = budget - int(table.cost[table.first].sum())
    taken = int(np.searchsorted(np.cumsum(cost[order]), left, side="right"))
    entries = table.first.copy()
    np.maximum.at(entries, owner[order[:taken]], target[order[:taken]])
    if taken == len(order):
        return entries, entries.copy(), 0.0
    left -= int(cost[order[:taken]].sum())
    more, closed = entries.copy(), set()
    least = int(cost[order[taken:]].min())
    for step in order[taken:].tolist():
        if left < least:
            break
        who = int(owner[step])
        if who in closed:
            continue
        if cost[step] <= left:
            more[who] = target[step]
            left -= int(cost[step])
        else:
            closed.add(who)  # its later steps lie beyond this one
    return entries, more, float(ratio[order[taken]])


def _topped_up(table: _Table, entries: np.ndarray, budget: int) -> np.ndarray:
    """`entries` after the single changes of largest gain that still fit, hull or not."""
    entries = entries.copy()
    for _ in range(50):
        left = budget - int(table.cost[entries].sum())
        dearer, gained = table.cost - table.cost[entries][table.owner], table.gain - table.gain[entries][table.owner]
        gained = np.where((dearer <= left) & (gained > 0), gained, 0.0)
        best = int(gained.argmax())
        if gained[best] <= 0:
            break
        entries[table.owner[best]] = best
    return entries


def _closed_gap(
    table: _Table, whole: np.ndarray, price: float, budget: int, bound: float, value: float
) -> tuple[np.ndarray | None, bool]:
    """(entries worth more than `value`, or None; whether nothing within the budget is worth more than what is now known).

    A state is (cost, slack): slack is what its entries lose against `whole` when a unit of cost is worth `price`, so it can end at
    no more than bound - slack. Only entries and states that can still beat the best are kept, and of those none that costs as much
    as another and gains no more.
    """
    worth = table.gain - price * table.cost
    slack = np.maximum(worth[whole][table.owner] - worth, 0.0)
    tiny = 1e-12 * max(abs(bound), 1e-300)
    alive = np.flatnonzero(slack < bound - value - tiny)
    alive = alive[np.argsort(table.owner[alive], kind="stable")]
    groups = [part for part in np.split(alive, np.flatnonzero(np.diff(table.owner[alive])) + 1) if len(part) > 1]
    groups.sort(key=lambda part: float(np.sort(slack[part])[1]))
    costs, lost = np.array([int(table.cost[whole].sum())]), np.zeros(1)
    stages: list[tuple[np.ndarray, np.ndarray]] = []
    best: tuple[int, int] | None = None
    proven, work = True, 0
    for part in groups:
        work += len(costs) * len(part)
        if work > MOST_WORK:
            proven = False
            break
        new_costs = (costs[:, None] + (table.cost[part] - table.cost[whole[table.owner[part[0]]]])).ravel()
        new_lost = (lost[:, None] + slack[part]).ravel()
        order = np.lexsort((new_lost, new_costs))
        earned = price * new_costs[order] - new_lost[order]  # against `whole`, up to a constant
        peak = np.maximum.accumulate(earned)
        useful = np.concatenate([[True], earned[1:] > peak[:-1]])
        order = order[useful & (new_lost[order] < bound - value - tiny)]
        if len(order) > MOST_STATES:
            order, proven = np.sort(order[np.argsort(new_lost[order], kind="stable")[:MOST_STATES]]), False
        stages.append((order // len(part), part[order % len(part)]))
        costs, lost = new_costs[order], new_lost[order]
        if not len(order):
            break
        ends = np.where(costs <= budget, bound - lost - price * (budget - costs), -np.inf)
        top = int(ends.argmax())
        if ends[top] > value + tiny:
            value, best = float(ends[top]), (len(stages), top)
    if best is None:
        return None, proven
    entries, (depth, state) = whole.copy(), best
    for parents, entry in reversed(stages[:depth]):
        entries[table.owner[entry[state]]] = entry[state]
        state = int(parents[state])
    return entries, proven
