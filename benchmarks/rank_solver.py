"""How much processor time the budget solver takes for 10,000 modules, and how far its plans may be from the best: its own bound.

python -m benchmarks.rank_solver
"""

from __future__ import annotations

import time

import numpy as np

from analyzers.ranks.solver import Choice, solve

MODULES, MOST_RANK, UNIFORM = 10_000, 64, 16


def main() -> None:
    random = np.random.default_rng(0)
    ranks = np.arange(1, MOST_RANK + 1)
    shapes = {
        "concave gains": lambda: np.cumsum(np.sort(random.random(MOST_RANK))[::-1]),
        "gains in few steps": lambda: np.cumsum(random.random(MOST_RANK) * (random.random(MOST_RANK) < 0.3)),
        "convex gains": lambda: np.cumsum(np.sort(random.random(MOST_RANK))),
    }
    costs = {"r²": ranks**2, "r·(in + out)": ranks * 4608}
    print("| gains | cost | processor seconds | of the budget | gap to the bound |\n|---|---|---|---|---|")
    for label, gains in shapes.items():
        for name, cost in costs.items():
            choices = [Choice(ranks, gains(), cost) for _ in range(MODULES)]
            budget = MODULES * int(cost[UNIFORM - 1])
            began = time.process_time()
            found = solve(choices, budget)
            seconds = time.process_time() - began
            gap = (found.bound - found.gain) / found.gain
            print(f"| {label} | {name} | {seconds:.2f} | {found.cost / budget:.4%} | {gap:.1e} |", flush=True)


if __name__ == "__main__":
    main()
