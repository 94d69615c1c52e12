"""The options that `loraxs size` and `loraxs fleet` share, and what they mean together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from analyzers.checks import not_negative
from analyzers.methods import MAIN_METHODS, METHODS, method
from analyzers.units import GIB
from app.options.common import PlanFile, Targets, load_plan
from app.options.groups import takes
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    from analyzers.storage import Scenario

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


@dataclass(frozen=True, kw_only=True)
class FleetChoice:
    """How many adapters are kept, how often they are loaded, and what they are served from."""

    methods: Annotated[str, typer.Option(help="Methods, comma-separated.")] = "full,lora,vera,lora-xs"
    adapters: Adapters = 1000
    versions: Annotated[int, typer.Option(help="Versions retained of each, the current one included.")] = 1
    loads: Annotated[float, typer.Option(help="Loads from the store a month, all adapters together.")] = 0.0
    request_price: Annotated[float, typer.Option(help="$ per 1,000 loads.")] = 0.0004
    egress: Annotated[float, typer.Option(help="$ per GB that leaves the store.")] = 0.0
    link: Annotated[float, typer.Option(help="Gigabits a second of the link adapters are loaded over.")] = 1.0
    memory: Annotated[float, typer.Option(help="GiB of memory that adapters stay resident in.")] = 80.0
    base_gib: Annotated[float, typer.Option(help="GiB of it that the base model takes.")] = 0.0

    def scenario(self, model: str, choice: AdapterChoice) -> Scenario:
        """The question about `model`. Raises SettingsError for values that no fleet can have."""
        from analyzers.storage import Scenario

        methods, loaded = methods_of(self.methods), load_plan(choice.plan)
        not_negative(self.base_gib, "The memory taken by the base model")
        return Scenario(
            model=model,
            methods=methods,
            ranks=ranks_of(choice.rank, methods),
            plan=loaded.to_dict() if loaded else None,
            targets=choice.targets,
            dtype=choice.dtype,
            task=choice.task,
            options=choice.options,
            adapters=self.adapters,
            replicas=choice.replicas,
            versions=self.versions,
            price_per_gb_month=choice.price,
            loads_per_month=self.loads,
            price_per_1000_loads=self.request_price,
            egress_price_per_gb=self.egress,
            gigabits_per_second=self.link,
            memory_gib=self.memory,
            base_bytes_in_memory=self.base_gib * GIB,
        )


takes_fleet_choice = takes("fleet", FleetChoice)


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
