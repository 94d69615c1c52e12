"""An honest integer allocator: ranks whose squares sum to at most the budget, and to at least 95 % of it if any such plan exists.

Giving a layer rank r costs r² trained numbers, so the step from r to r + 1 costs 2r + 1. A strategy scores every step; steps are
taken in the order of their scores, those that no longer fit are left out. Where a layer's scores fall with r (all strategies
here), that order is the exact optimum of Σ cost·score at every budget it happens to exhaust (the separable concave knapsack; see
Fox, "Discrete optimization via marginal analysis", Management Science 1966), and short of it by less than one step otherwise.
Layers with equal scores stay equal where 95 % of the budget can be used that way: a regular plan is worth a few unused numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FULL_USE = 0.95  # the share of the budget that a plan uses, wherever whole numbers and the layers' limits allow it
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Allocation:
    """ranks: one a layer. used: Σ r². best_possible: the largest Σ r² that any plan can reach when `used` is under 95 %."""

    ranks: np.ndarray
    used: int
    best_possible: int | None = None


def allocate(scores: Sequence[np.ndarray], lower: Sequence[int], limit: int) -> Allocation:
    """Ranks (int64, one a layer) with Σ r² <= limit, taking the highest-scored steps first.

    scores[i][k]: worth per trained number of the step from rank lower[i] + k to lower[i] + k + 1, never rising with k; its
    length is how far that layer may grow. lower: the rank every layer starts from, at least 1; the caller has checked that
    Σ lower² <= limit. The same input gives the same ranks. Equal scores are decided by `spread_order`.
    """
    lower = np.asarray(lower, dtype=np.int64)
    ranks, level = _greedy(scores, lower, int(limit))
    used = int((ranks**2).sum())
    if used >= FULL_USE * limit or _all_at_their_limit(scores, lower, ranks):
        return Allocation(ranks, used, None if used >= FULL_USE * limit else used)
    better = _exact(scores, lower, int(limit), level)
    return better if better.used > used else Allocation(ranks, used, better.used)


def spread_order(count: int) -> np.ndarray:
    """The order in which layers of equal worth are served: every beginning of it is spread evenly over the model.

    Position i is ranked by the fractional part of i times the golden ratio (a low-discrepancy sequence), so it favours neither
    the first layers nor, as counting in powers of two would, every second module of a repeating block.
    """
    place = np.empty(count, dtype=np.int64)
    place[np.argsort(np.arange(count) * _GOLDEN % 1.0, kind="stable")] = np.arange(count)
    return place


def _greedy(scores: Sequence[np.ndarray], lower: np.ndarray, limit: int) -> tuple[np.ndarray, float]:
    """Ranks, and the score of the best step that did not fit (the price of a trained number at this budget)."""
    layers = len(scores)
    lengths = np.array([len(steps) for steps in scores])
    left = limit - int((lower**2).sum())
    ranks = lower.copy()
    if not lengths.sum():
        return ranks, 0.0
    owner = np.repeat(np.arange(layers), lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    worth = np.concatenate([np.minimum.accumulate(np.asarray(steps, dtype=np.float64)) for steps in scores])
    cost = 2 * (lower[owner] + step) + 1
    place = spread_order(layers)
    order = np.lexsort((step, place[owner], -worth))
    # All steps up to the first that does not fit, at once...
    taken = int(np.searchsorted(np.cumsum(cost[order]), left, side="right"))
    equals = _equals(worth[order], taken)
    if len(equals) > 1 and limit - left + int(cost[order[: equals[0]]].sum()) >= FULL_USE * limit:
        ranks += np.bincount(owner[order[: equals[0]]], minlength=layers)
        return ranks, float(worth[order[taken]])
    ranks += np.bincount(owner[order[:taken]], minlength=layers)
    left -= int(cost[order[:taken]].sum())
    if taken == len(order):
        return ranks, 0.0
    level = float(worth[order[taken]])
    # ...then one by one: a layer whose next step is too dear is finished, as its later steps are dearer still.
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def entry(layer: int) -> tuple[float, int, int] | None:
        done = int(ranks[layer] - lower[layer])
        return (-worth[first[layer] + done], int(place[layer]), layer) if done < lengths[layer] else None

    heap = [found for found in map(entry, range(layers)) if found]
    heapq.heapify(heap)
    while heap:
        layer = heapq.heappop(heap)[2]
        price = 2 * int(ranks[layer]) + 1
        if price <= left:
            ranks[layer] += 1
            left -= price
            if following := entry(layer):
                heapq.heappush(heap, following)
    return ranks, level


def _equals(worth: np.ndarray, index: int) -> range:
    """The positions in `worth` (falling) that hold the same value as position `index`; none past its end."""
    if index == len(worth):
        return range(0)
    first, last = (int(np.searchsorted(-worth, -worth[index], side=side)) for side in ("left", "right"))
    return range(first, last)


def _all_at_their_limit(scores: Sequence[np.ndarray], lower: np.ndarray, ranks: np.ndarray) -> bool:
    return all(rank == low + len(steps) for rank, low, steps in zip(ranks, lower, scores, strict=True))


def _exact(scores: Sequence[np.ndarray], lower: np.ndarray, limit: int, level: float) -> Allocation:
    """The best plan that uses 95 % of `limit`, or else the fullest there is: dynamic programming over the sum of squares.

    Needed only where the greedy plan leaves more than 5 %, that is 0.05·limit < 2r + 1 for the smallest rank r that may still
    grow. As limit >= r² that means r <= 41 and limit < 1,700, so the table is small whatever the model. Best is the largest
    Σ cost·(score - level): for scores that mean gain per number, the gain beyond what those numbers are worth elsewhere.
    """
    spare = limit - int((lower**2).sum())
    best = np.full(spare + 1, -np.inf)
    best[0] = 0.0
    choices: list[np.ndarray] = []
    for steps, low in zip(scores, lower.tolist(), strict=True):
        extra = [0]
        worth = [0.0]
        for index, score in enumerate(np.minimum.accumulate(np.asarray(steps, dtype=np.float64)) if len(steps) else []):
            price = 2 * (low + index) + 1
            if extra[-1] + price > spare:
                break
            extra.append(extra[-1] + price)
            worth.append(worth[-1] + price * (float(score) - level))
        updated = best.copy()
        choice = np.zeros(spare + 1, dtype=np.int32)
        for taken in range(1, len(extra)):
            offered = best[: spare + 1 - extra[taken]] + worth[taken]
            window = updated[extra[taken] :]
            better = offered > window
            window[better] = offered[better]
            choice[extra[taken] :][better] = taken
        best = updated
        choices.append(choice)
    reachable = np.flatnonzero(np.isfinite(best))
    full = reachable[reachable + (limit - spare) >= FULL_USE * limit]
    total = int(full[np.argmax(best[full])]) if len(full) else int(reachable[-1])
    ranks = lower.copy()
    rest = total
    for index in range(len(scores) - 1, -1, -1):
        taken = int(choices[index][rest])
        low = int(lower[index])
        ranks[index] += taken
        rest -= (low + taken) ** 2 - low**2
    used = int((ranks**2).sum())
    return Allocation(ranks, used, None if used >= FULL_USE * limit else used)
