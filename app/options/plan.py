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
BUDGETS = ("like_rank", "parameters", "adapter_bytes", "lora_parameters", "gpu_bytes", "gain_kept")
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
    lora_parameters: Annotated[
        int | None,
        typer.Option("--lora-parameters", help="Budget: this many trained numbers of a LoRA with these ranks at most."),
    ] = None
    gpu_bytes: Annotated[
        int | None,
        typer.Option("--gpu-bytes", help="Budget: adapters of this many bytes on the GPU at most, activations apart."),
    ] = None
    gain_kept: Annotated[
        int | None,
        typer.Option(
            "--gain-kept", help="Budget: the smallest plan that keeps this many per cent of the strategy's whole gain."
        ),
    ] = None
    targets: Targets = str(DEFAULTS.targets)
    exclude: Annotated[str, typer.Option(help="Module suffixes or roles to leave out again, comma-separated.")] = ""
    pins: Annotated[
        str,
        typer.Option(
            "--pin", help="Ranks that are fixed whatever the strategy says: mlp.down=8,layer.0.attention.self.query=4."
        ),
    ] = ""
    min_rank: Annotated[int, typer.Option(help="No layer gets less.")] = DEFAULTS.min_rank
    max_rank: Annotated[int | None, typer.Option(help="No layer gets more.")] = DEFAULTS.max_rank
    multiple_of: Annotated[int, typer.Option(help="Ranks are multiples of this.")] = DEFAULTS.multiple_of
    same: Annotated[
        str, typer.Option(help="'role' or 'block': one rank in all layers of a role, or all modules of a block.")
    ] = DEFAULTS.same
    may_leave_out: Annotated[bool, typer.Option("--may-leave-out", help="A layer may get no adapter at all.")] = (
        DEFAULTS.may_leave_out
    )
    alpha_over_r: Annotated[float, typer.Option(help="The scaling alpha/r, the same in every layer.")] = DEFAULTS.alpha_over_r

    def budgets(self) -> dict[str, int]:
        """Kind -> value, of the budgets that were given."""
        given = {kind: getattr(self, kind) for kind in BUDGETS}
        return {kind: value for kind, value in given.items() if value is not None}

    def settings(self) -> PlanSettings:
        """The question. Raises SettingsError for two budgets, PlanError for what no plan can meet."""
        given = self.budgets()
        if len(given) > 1:
            options = [f"--{kind.replace('_', '-')}" for kind in BUDGETS]
            raise SettingsError(f"Give one budget: {', '.join(options[:-1])} or {options[-1]}.")
        budgets = [getattr(Budget, kind)(value) for kind, value in given.items()]
        return PlanSettings(
            strategy=self.strategy,
            budget=budgets[0] if budgets else DEFAULTS.budget,
            targets=self.targets,
            min_rank=self.min_rank,
            max_rank=self.max_rank,
            alpha_over_r=self.alpha_over_r,
            exclude=names(self.exclude),
            pins=pins(self.pins),
            multiple_of=self.multiple_of,
            same=self.same,
            may_leave_out=self.may_leave_out,
        )


def pins(text: str) -> tuple[tuple[str, int], ...]:
    """``mlp.down=8,query=4`` as module, suffix or role and its rank. Raises SettingsError."""
    return tuple(_pin(part.strip()) for part in text.split(",") if part.strip())


def names(text: str) -> tuple[str, ...]:
    """What commas separate."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _pin(text: str) -> tuple[str, int]:
    name, _, rank = text.rpartition("=")
    if not name or not rank.strip().isdigit():
        raise SettingsError(f"A pin is MODULE=RANK, such as mlp.down=8, not {text!r}.")
    return name.strip(), int(rank)


takes_plan_choice = takes("choice", PlanChoice)


@dataclass(frozen=True)
class Fits:
    """In place of a budget: the training step that is to fit a card. gpu: memory in GB, or a name. batch: sequences a step. sequence:
    tokens a sequence."""

    gpu: str
    batch: int = 8
    sequence: int = 512


@dataclass(frozen=True)
class Asked:
    """A plan that is asked for. settings: None for the plan in use. fits: in place of the settings' budget. signals: the file with what a
    task says, for strategies that read it."""

    settings: PlanSettings | None
    fits: Fits | None = None
    signals: Path | None = None


def words(settings: PlanSettings, *, budget: bool = True) -> str:
    """`settings` as options: strategy and budget always, of the others those that differ from the default.

    >>> words(PlanSettings(strategy="energy", max_rank=32))
    '--strategy energy --like-rank 16 --max-rank 32'
    """
    always = ("strategy", *((settings.budget.kind,) if budget else ()))
    targets = settings.targets if isinstance(settings.targets, str) else ",".join(settings.targets)
    values = vars(settings) | {
        "targets": targets,
        "exclude": ",".join(settings.exclude),
        "pins": ",".join(f"{name}={rank}" for name, rank in settings.pins),
    }
    return spelled(PlanChoice, values | ({settings.budget.kind: settings.budget.value} if budget else {}), always=always)
