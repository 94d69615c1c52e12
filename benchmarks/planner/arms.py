"""The arms of the evidence: every strategy, and controls that hold what a plan does apart from where it does it.

A *permuted* plan has the same ranks in other layers (another permutation each seed), an *inverted* one gives output dense layers
half the rank of the others in place of twice. All arms of a study spend the same Σ r² within 1 %.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from analyzers.compare.calibration import activation_curves, gradient_curves, warm_up_curves
from analyzers.plans import Budget, RankPlan
from analyzers.ranks import STRATEGIES, Strategy, make_plan
from analyzers.ranks.signals import Signals
from analyzers.spectra import scan
from benchmarks.planner.trial import Bench

TARGETS = "all-linear"
CALIBRATION = 24  # batches of the seed's training data
WARM_UP_RATE = 0.02
EQUAL = 0.01  # of the budget: how far Σ r² of arms may differ


class Arms:
    """Plans for one bench at one budget (Σ r² of uniform `rank`)."""

    def __init__(self, bench: Bench, rank: int):
        self.bench, self.rank = bench, rank
        self._signals: dict[int, Signals] = {}

    def plan(self, arm: str, seed: int) -> RankPlan | None:
        """The plan of `arm`; None for the head alone. Raises ValueError for a plan that spends another budget."""
        if arm == "head":
            return None
        base, _, change = arm.partition(":")
        if change == "permuted":
            return permuted(self.plan(base, seed), seed)
        strategy = _variant(base, change)
        made = make_plan(
            self.bench.checkpoint,
            budget=Budget.like_rank(self.rank),
            targets=TARGETS,
            strategy=strategy.name,
            spectra=scan(self.bench.checkpoint) if strategy.needs_spectra else None,
            signals=self.signals(seed) if strategy.signal else None,
        )
        if made.trainable < (1 - EQUAL) * made.budget:
            raise ValueError(f"{arm} spends {made.trainable} of {made.budget}")
        return made

    def signals(self, seed: int) -> Signals:
        """What the task says with the data and the head of `seed`; the last is kept."""
        if seed not in self._signals:
            self._signals = {seed: calibrate(self.bench, 2 * self.rank + 1, seed)}
        return self._signals[seed]


def permuted(plan: RankPlan, seed: int) -> RankPlan:
    """The ranks of `plan` in other layers, by a permutation of `seed`."""
    names = list(plan.ranks)
    mixed = np.random.default_rng([seed, 7]).permutation(list(plan.ranks.values()))
    return dataclasses.replace(
        plan, ranks=dict(zip(names, map(int, mixed), strict=True)), strategy=f"{plan.strategy} (permuted)"
    )


def calibrate(bench: Bench, top: int, seed: int) -> Signals:
    """Every signal, at R = 0 with the trained head of `seed`, over the first batches of its order."""
    bench.start(seed)
    batches = bench.material(seed).order[:CALIBRATION]
    largest = make_plan(bench.checkpoint, "uniform", budget=Budget.like_rank(top), targets=TARGETS)

    def loss(batch: dict):
        return bench.prepared.model(**batch)["loss"]

    with bench.adapted(largest, seed) as parameters:
        layers = bench.layers(list(largest.ranks), largest)
        matrices = {name: layer.loraxs_R["default"] for name, layer in layers.items()}
        assert {id(one) for one in matrices.values()} == {id(one) for one in parameters}
        for matrix in parameters:
            matrix.data.zero_()
        curves = gradient_curves(loss, matrices, batches)
        curves["warm-up"] = warm_up_curves(loss, matrices, batches, WARM_UP_RATE)
        curves["activation"] = activation_curves(lambda batch: bench.prepared.model(**batch), layers, batches, top)
    return Signals(bench.checkpoint.name, bench.setup.task, len(batches), curves)


def _variant(base: str, change: str) -> Strategy:
    """A strategy of the program, or one of its variants that is registered for this study: ``role:inverted``, ``role:x3`` …"""
    if not change:
        return STRATEGIES[base]
    name = f"{base}:{change}"
    if name not in STRATEGIES:
        STRATEGIES[name] = dataclasses.replace(STRATEGIES[base], name=name, score=_role_score(change))
    return STRATEGIES[name]


def _role_score(change: str) -> Callable:
    roles = {"mlp.down", "attention.output"} if change.startswith("both") else {"mlp.down"}
    factor = 0.5 if change == "inverted" else float(change.removeprefix("both").removeprefix("x"))

    def score(layer, ranks: np.ndarray) -> np.ndarray:
        return -(ranks + 0.5) / (factor if layer.weight.role in roles else 1.0)

    return score
