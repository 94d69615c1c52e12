"""The options that `loraxs size` and `loraxs fleet` share, and what they mean together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from analyzers.methods import MAIN_METHODS, METHODS, method
from app.options.common import PlanFile, Targets
from app.options.groups import takes
from loraxs_core.errors import SettingsError

Ranks = Annotated[
    list[str] | None,
    typer.Option(
        "--rank", help="METHOD=RANK, or RANK for all; may be given several times. Each method's own default when left out."
    ),
]
Adapters = Annotated[int, typer.Option(help="Adapters kept: one a task, one a user.")]


@dataclass(frozen=True, kw_only=True)
class AdapterChoice:
    """What an adapter is made of, how it is saved, and what keeping it costs."""

    rank: Ranks = None
    plan: PlanFile = None
    targets: Targets = "paper"
    dtype: Annotated[str, typer.Option(help="Precision of the saved adapter: float32, bfloat16 or float16.")] = "float32"
    task: Annotated[
        str | None,
        typer.Option(help="Model class: base, causal-lm, sequence-classification, …; the checkpoint's own when left out."),
    ] = None
    vera_seeded: Annotated[
        bool,
        typer.Option(
            "--vera-seeded", help="VeRA makes its projections from a seed instead of saving them (save_projection=False)."
        ),
    ] = False
    replicas: Annotated[int, typer.Option(help="Copies of each.")] = 1
    price: Annotated[float, typer.Option(help="Storage price in $ per GB and month.")] = 0.023

    @property
    def options(self) -> dict[str, dict] | None:
        """Further arguments of the methods' PEFT configurations."""
        return {"vera": {"save_projection": False}} if self.vera_seeded else None


takes_adapter_choice = takes("choice", AdapterChoice)


def methods_of(text: str) -> tuple[str, ...]:
    """The methods named in ``lora,vera``; ``all`` is LoRA, VeRA and LoRA-XS. Raises SettingsError for none or an unknown one."""
    if text.strip() == "all":
        return MAIN_METHODS
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise SettingsError("Name at least one method.")
    for name in names:
        method(name)
    return names


def ranks_of(given: list[str] | None, methods: tuple[str, ...]) -> dict[str, int]:
    """Method -> rank, from ``METHOD=RANK`` and ``RANK``. Raises SettingsError for anything else."""
    ranks: dict[str, int] = {}
    for text in given or []:
        name, equals, value = text.rpartition("=")
        if not (value.isascii() and value.isdecimal()) or (equals and name not in methods):
            raise SettingsError(f"--rank takes RANK or METHOD=RANK with one of the methods compared, not {text!r}.")
        ranks.update({name: int(value)} if equals else {one: int(value) for one in methods if METHODS[one].ranked})
    return ranks
