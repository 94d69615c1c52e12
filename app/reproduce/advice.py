"""The command and the Python code that race ranks and rates as the Plan page does."""

from __future__ import annotations

import shlex
from dataclasses import fields

from analyzers.compare.rank_advice import AdviceSettings
from app.options.advice import words


def command(settings: AdviceSettings) -> str:
    """`loraxs advise` that runs the same races."""
    return f"loraxs advise {shlex.quote(settings.model)} {words(settings)}"


def python(settings: AdviceSettings) -> str:
    """The same in Python; fields that have their default are left out, but for the rates, which follow the task."""
    given = [
        f"    {field.name}={getattr(settings, field.name)!r},\n"
        for field in fields(settings)
        if field.name in ("model", "rates") or getattr(settings, field.name) not in (field.default, {})
    ]
    return (
        "from analyzers.compare.rank_advice import AdviceSettings, advise_rank\n\n"
        f"advice = advise_rank(AdviceSettings(\n{''.join(given)}))\nprint(advice.sentence)\nprint(advice.frame())"
    )
