"""The command and the Python code that make the plan which the Plan page shows."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

from analyzers.ranks import STRATEGIES
from app.options.plan import DEFAULTS, Asked, words


def command(model: str, asked: Asked) -> str:
    """`loraxs plan` that makes the plan that is asked for."""
    assert asked.settings is not None
    said = [f"loraxs plan {shlex.quote(model)}", words(asked.settings, budget=asked.fits is None)]
    if fits := asked.fits:
        said.append(f"--fits {shlex.quote(fits.gpu)} --batch {fits.batch} --sequence {fits.sequence}")
    if asked.signals:
        said.append(f"--signals {shlex.quote(str(asked.signals))}")
    return f"{' '.join(said)} --out plan.json"


def python(model: str, asked: Asked) -> str:
    """The same in Python, up to the variable ``plan``; fields that have their default are left out."""
    settings, fits, signals = asked.settings, asked.fits, asked.signals
    assert settings is not None
    reads = STRATEGIES[settings.strategy].needs_spectra
    said = [
        f"{field.name}={getattr(settings, field.name)!r}"
        for field in fields(settings)
        if field.name not in ("strategy", "budget") and getattr(settings, field.name) != getattr(DEFAULTS, field.name)
    ]
    given = ["spectra=scan(model)"] if reads else []
    given += [f"signals=Signals.load({str(signals)!r})"] if signals else []
    imports = ["from analyzers.spectra import scan"] if reads else []
    if fits:
        made = ["PlanSettings", "largest_that_fits", *(["Signals"] if signals else [])]
        imports.append("from analyzers.memory import MemorySettings, find_gpu")
        question = ", ".join([f"strategy={settings.strategy!r}", *said])
        arguments = [
            f"PlanSettings({question})",
            f"MemorySettings(batch={fits.batch}, sequence={fits.sequence})",
            f"find_gpu({fits.gpu!r})",
        ]
        call = "largest_that_fits"
    else:
        made = ["Budget", "make_plan", *(["Signals"] if signals else [])]
        arguments = [repr(settings.strategy), f"budget=Budget.{settings.budget.kind}({settings.budget.value})", *said]
        call = "make_plan"
    imports += [f"from analyzers.ranks import {', '.join(sorted(made))}", "from sample_models import open_model"]
    lines = "".join(f"    {argument},\n" for argument in ("model", *arguments, *given))
    return "\n".join(imports) + f"\n\nmodel = open_model({model!r})\nplan = {call}(\n{lines})"


def command_of_file(model: str, file: Path | None) -> str:
    """What the plan kept in `file` weighs; no option of the command makes it again."""
    return f"loraxs size {shlex.quote(model)} --method lora-xs --plan {shlex.quote(str(file))}"


def python_of_file(model: str, file: Path | None) -> str:
    """The plan kept in `file`, in Python."""
    return (
        "from analyzers.ranks import RankPlan\nfrom sample_models import open_model\n\n"
        f"model = open_model({model!r})\nplan = RankPlan.load({str(file)!r})"
    )
