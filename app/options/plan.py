"""What a rank plan is asked for, as options of `loraxs plan`, and as the words that reproduce it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import analyzers
from analyzers.plans import Budget, PlanSettings
from app.options.common import Targets
from app.options.groups import spelled, takes
from loraxs_core.errors import SettingsError
from loraxs_core.registry import named

DEFAULTS = PlanSettings()
# Read from the files' names: importing the strategies takes longer than the help text may.
STRATEGIES = named(Path(analyzers.__path__[0]) / "ranks" / "strategies", "STRATEGY", first=[DEFAULTS.strategy])


@dataclass(frozen=True, kw_only=True)
class PlanChoice:
    """The options; `analyzers.plans.PlanSettings` documents what they mean, and has their defaults."""

    strategy: Annotated[str, typer.Option(help=f"How the budget is shared: {', '.join(STRATEGIES)}.")] = DEFAULTS.strategy
    like_rank: Annotated[
        int | None,
        typer.Option(
            help=f"Budget: as many trained numbers as a uniform plan of this rank; {DEFAULTS.budget.value} when no budget is given."
        ),
    ] = None
    parameters: Annotated[int | None, typer.Option("--parameters", help="Budget: this many trained numbers at most.")] = None
    adapter_bytes: Annotated[
        int | None, typer.Option("--adapter-bytes", help="Budget: an adapter file of this many bytes at most.")
    ] = None
    targets: Targets = str(DEFAULTS.targets)
    min_rank: Annotated[int, typer.Option(help="No layer gets less.")] = DEFAULTS.min_rank
    max_rank: Annotated[int | None, typer.Option(help="No layer gets more.")] = DEFAULTS.max_rank
    alpha_over_r: Annotated[float, typer.Option(help="The scaling alpha/r, the same in every layer.")] = DEFAULTS.alpha_over_r

    def settings(self) -> PlanSettings:
        """The question. Raises SettingsError for two budgets, PlanError for what no plan can meet."""
        given = {kind: getattr(self, kind) for kind in ("like_rank", "parameters", "adapter_bytes")}
        given = {kind: value for kind, value in given.items() if value is not None}
        if len(given) > 1:
            raise SettingsError("Give one budget: --like-rank, --parameters or --adapter-bytes.")
        budgets = [getattr(Budget, kind)(value) for kind, value in given.items()]
        return PlanSettings(
            strategy=self.strategy,
            budget=budgets[0] if budgets else DEFAULTS.budget,
            targets=self.targets,
            min_rank=self.min_rank,
            max_rank=self.max_rank,
            alpha_over_r=self.alpha_over_r,
        )


takes_plan_choice = takes("choice", PlanChoice)


def words(settings: PlanSettings) -> str:
    """`settings` as options: strategy and budget always, of the others those that differ from the default.

    >>> words(PlanSettings(strategy="energy", max_rank=32))
    '--strategy energy --like-rank 16 --max-rank 32'
    """
    targets = settings.targets if isinstance(settings.targets, str) else ",".join(settings.targets)
    values = vars(settings) | {"targets": targets, settings.budget.kind: settings.budget.value}
    return spelled(PlanChoice, values, always=("strategy", settings.budget.kind))
