"""The options that say which data a comparison reads, and how much of it is scored."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

ALL = "all"


def count_or_all(text: str | int) -> int | str:
    """A whole number, or `ALL`."""
    if text == ALL:
        return ALL
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"give a whole number or {ALL}, not {text!r}.") from None


@dataclass(frozen=True)
class ColumnOptions:
    """Which column of the user's own data is what."""

    text: Annotated[str | None, typer.Option(help="Column with the text, where it is not called text.")] = None
    text_b: Annotated[str | None, typer.Option(help="Column with the second text of a pair.")] = None
    label: Annotated[str | None, typer.Option(help="Column with the class or the number to predict.")] = None
    prompt: Annotated[str | None, typer.Option(help="Column with what a decoder reads.")] = None
    completion: Annotated[str | None, typer.Option(help="Column with what it is to write.")] = None
    context: Annotated[str | None, typer.Option(help="Column with what follows the prompt, where a row has it.")] = None
    messages: Annotated[str | None, typer.Option(help="Column with conversations, lists of role and content.")] = None
    tools: Annotated[str | None, typer.Option(help="Column with the tools that the assistant may call.")] = None
    split: Annotated[str | None, typer.Option(help="Column that says train, validation or test.")] = None

    @property
    def columns(self) -> dict[str, str]:
        """role -> column, of those that were given."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(ColumnOptions)}
        return {role: column for role, column in given.items() if column is not None}


@dataclass(frozen=True)
class DataOptions(ColumnOptions):
    """Which column of the user's own data is what, and how many examples are scored."""

    evaluations: Annotated[int, typer.Option(help="Points of the validation curve.")] = 4
    validation_examples: Annotated[
        str, typer.Option(parser=count_or_all, metavar="N|all", help="Validation examples at most.")
    ] = "256"
    test_examples: Annotated[str, typer.Option(parser=count_or_all, metavar="N|all", help="Test examples at most.")] = ALL

    @property
    def scored(self) -> dict[str, Any]:
        """What of `SweepSettings` says how much is scored."""
        counts = {name: getattr(self, name) for name in COUNTS}
        return {"evaluations": self.evaluations, **{name: None if most == ALL else int(most) for name, most in counts.items()}}


COUNTS = ("validation_examples", "test_examples")
