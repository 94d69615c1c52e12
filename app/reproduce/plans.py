"""The command and the Python code that make the plan which the Plan page shows."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

from analyzers.plans import PlanSettings
from analyzers.ranks import STRATEGIES
from app.options.plan import DEFAULTS, words


def command(model: str, settings: PlanSettings) -> str:
    """`loraxs plan` that makes the plan of `settings`."""
    return f"loraxs plan {shlex.quote(model)} {words(settings)} --out plan.json"


def python(model: str, settings: PlanSettings) -> str:
    """The same in Python, up to the variable ``plan``; fields that have their default are left out."""
    reads = STRATEGIES[settings.strategy].needs_spectra
    budget = settings.budget
    given = [
        f"    {field.name}={getattr(settings, field.name)!r},\n"
        for field in fields(settings)
        if field.name not in ("strategy", "budget") and getattr(settings, field.name) != getattr(DEFAULTS, field.name)
    ]
    return (
        ("from analyzers.spectra import scan\n" if reads else "")
        + "from analyzers.ranks import Budget, make_plan\nfrom sample_models import open_model\n\n"
        + f"model = open_model({model!r})\n"
        + f"plan = make_plan(\n    model,\n    {settings.strategy!r},\n    budget=Budget.{budget.kind}({budget.value}),\n"
        + ("    spectra=scan(model),\n" if reads else "")
        + "".join(given)
        + ")"
    )


def command_of_file(model: str, file: Path | None) -> str:
    """What the plan kept in `file` weighs; no option of the command makes it again."""
    return f"loraxs size {shlex.quote(model)} --method lora-xs --plan {shlex.quote(str(file))}"


def python_of_file(model: str, file: Path | None) -> str:
    """The plan kept in `file`, in Python."""
    return (
        "from analyzers.ranks import RankPlan\nfrom sample_models import open_model\n\n"
        f"model = open_model({model!r})\nplan = RankPlan.load({str(file)!r})"
    )
