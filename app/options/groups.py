"""Options that several verbs share: a dataclass spells them once, and a decorator gives them to a verb."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any, get_type_hints


def takes(name: str, group: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command with its parameter `name` spelled out, for Typer, as the options that the dataclass `group` is made
    of; the command gets them together, as one `group`."""
    hints = get_type_hints(group, include_extras=True)
    options = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(group)
    ]

    def spelled(command: Callable[..., None]) -> Callable[..., None]:
        own = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for parameter, given in inspect.signature(command).parameters.items():
            if parameter == name:
                parameters += options
            else:
                parameters.append(given.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=own[parameter]))

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            together = group(**{option.name: arguments.pop(option.name) for option in options})
            command(**arguments, **{name: together})

        del run.__wrapped__  # Typer is to read the new signature, not the old one
        run.__signature__ = inspect.Signature(parameters)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return spelled


def _text(value: object) -> str:
    """A value as an option takes it; several are separated by commas."""
    if isinstance(value, float):
        return f"{value:.12g}"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def spelled(
    group: type, values: Mapping[str, object], *, always: Collection[str] = (), defaults: Mapping[str, object] | None = None
) -> str:
    """`values` of fields of `group` as the options of a command: those that differ from the default, and those of `always`.

    defaults: of fields whose option is left out to mean a default that stands elsewhere.
    """
    hints = get_type_hints(group, include_extras=True)
    said = []
    for field in fields(group):
        default = (defaults or {}).get(field.name, field.default)
        value = values.get(field.name, default)
        if value == default and not (field.name in always and field.name in values):
            continue
        given = hints[field.name].__metadata__[0].default  # where Typer keeps an option's name that Annotated gives
        flag = given if isinstance(given, str) else f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            on, _, off = flag.partition("/")
            said.append(on if value else off)
        else:
            said.append(f"{flag} {shlex.quote(_text(value))}")
    return " ".join(said)
