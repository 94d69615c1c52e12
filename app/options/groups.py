"""Options that several verbs share: a dataclass spells them once, and a decorator gives them to a verb."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import get_type_hints


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
        def run(**arguments) -> None:
            together = group(**{option.name: arguments.pop(option.name) for option in options})
            command(**arguments, **{name: together})

        del run.__wrapped__  # Typer is to read the new signature, not the old one
        run.__signature__ = inspect.Signature(parameters)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return spelled
