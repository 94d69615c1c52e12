"""What stands side by side in a sweep: each method, LoRA-XS with each plan, each of its ablations, and configurations of the user's own.

ablate="basis"   the top singular vectors (the method itself) against random, middle and bottom ones
ablate="sigma"   the singular values on the input side (the method itself), the output side, split over both, left out
ablate="rank"    ranks from 4 to 32
ablate="plan"    plans of the same budget against uniform ranks (`ablation_plans`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from analyzers.plans import RankPlan
from loraxs_core.checkpoint import Checkpoint

if TYPE_CHECKING:
    from analyzers.spectra import Spectra

PLANNED = "lora-xs"  # the method that follows rank plans and is taken apart; the others run as their users run them
BASES = ("random", "middle", "bottom")
PLACES = {"output": "Σ at the output", "split": "Σ split", "none": "without Σ"}
RANKS = (4, 8, 12, 16, 24, 32)
PLAN = "plan"


@dataclass(frozen=True)
class Variant:
    """One of the things that are compared. note: what tells it from the method itself, empty for that one; plan: a rank for each layer,
    called `note`. options: further arguments of its configuration."""

    note: str = ""
    rank: int | None = None
    plan: dict | None = field(default=None, compare=False)
    options: Mapping[str, object] = field(default_factory=dict, compare=False)


def _bases(rank: int | None) -> list[Variant]:
    return [Variant(f"{vectors} vectors", rank, options={"vectors": vectors}) for vectors in BASES]


def _places(rank: int | None) -> list[Variant]:
    return [Variant(note, rank, options={"sigma": place}) for place, note in PLACES.items()]


def _ranks(rank: int | None) -> list[Variant]:
    return [Variant(f"r = {other}", other) for other in RANKS if other != rank]


ABLATIONS: dict[str, Callable[[int | None], list[Variant]]] = {
    "basis": _bases,
    "sigma": _places,
    "rank": _ranks,
    PLAN: lambda rank: [],
}


def variants(rank: int | None, plans: Mapping[str, dict], ablate: tuple[str, ...]) -> list[Variant]:
    """Of one method whose modules have `rank`. Without `ablate` plans stand in the place of uniform ranks, with it beside them."""
    planned = [Variant(label, plan=plan) for label, plan in plans.items()]
    itself = [] if planned and not ablate else [Variant(rank=rank)]
    return [*itself, *planned, *(variant for name in ablate for variant in ABLATIONS[name](rank))]


def ablation_plans(
    checkpoint: Checkpoint, rank: int, targets: object = "paper", spectra: Spectra | None = None
) -> dict[str, RankPlan]:
    """Every strategy's plan but the uniform one, in the budget of uniform ranks of `rank`: what ``ablate="plan"`` sets against them.

    Strategies that follow what a task says of each layer (`Strategy.signal`) need it measured first and are left out. spectra: scanned here where left out and a strategy needs them.
    """
    from analyzers.ranks import STRATEGIES, Budget, make_plan
    from analyzers.spectra import scan

    chosen = {name: strategy for name, strategy in STRATEGIES.items() if name != "uniform" and not strategy.signal}
    if spectra is None and any(strategy.needs_spectra for strategy in chosen.values()):
        spectra = scan(checkpoint)
    budget = Budget.like_rank(rank)
    return {name: make_plan(checkpoint, name, budget=budget, spectra=spectra, targets=targets) for name in chosen}
