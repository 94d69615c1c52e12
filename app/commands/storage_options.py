"""The options that `loraxs size` and `loraxs fleet` share, and what they mean together."""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_core.errors import SettingsError

Ranks = Annotated[
    list[str] | None,
    typer.Option(
        "--rank", help="METHOD=RANK, or RANK for all; may be given several times. Each method's own default when left out."
    ),
]
VeraSeeded = Annotated[
    bool,
    typer.Option(
        "--vera-seeded", help="VeRA makes its projections from a seed instead of saving them (save_projection=False)."
    ),
]
Dtype = Annotated[str, typer.Option(help="Precision of the saved adapter: float32, bfloat16 or float16.")]
ModelClass = Annotated[
    str | None,
    typer.Option(
        "--task", help="Model class: base, causal-lm, sequence-classification, …; the checkpoint's own when left out."
    ),
]
Adapters = Annotated[int, typer.Option(help="Adapters kept: one a task, one a user.")]
Replicas = Annotated[int, typer.Option(help="Copies of each.")]
Price = Annotated[float, typer.Option(help="Storage price in $ per GB and month.")]


def methods_of(text: str) -> tuple[str, ...]:
    """The methods named in ``lora,vera``; ``all`` is LoRA, VeRA and LoRA-XS. Raises SettingsError for none or an unknown one."""
    from analyzers.methods import MAIN_METHODS, method

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
    from analyzers.methods import METHODS

    ranks: dict[str, int] = {}
    for text in given or []:
        name, equals, value = text.rpartition("=")
        if not (value.isascii() and value.isdecimal()) or (equals and name not in methods):
            raise SettingsError(f"--rank takes RANK or METHOD=RANK with one of the methods compared, not {text!r}.")
        ranks.update({name: int(value)} if equals else {one: int(value) for one in methods if METHODS[one].ranked})
    return ranks


def options_of(vera_seeded: bool) -> dict[str, dict] | None:
    """Further arguments of the methods' PEFT configurations."""
    return {"vera": {"save_projection": False}} if vera_seeded else None
