"""One file a verb. A verb is a function `run` with Typer annotations and a docstring; `register` puts them on the command."""

from __future__ import annotations

import importlib

import typer

# In the order of the work.
VERBS = (
    "inspect",
    "scan",
    "spectrum",
    "plan",
    "size",
    "fleet",
    "memory",
    "fit",
    "compare",
    "runs",
    "demo",
    "verify",
    "convert",
    "export",
    "merge",
    "cache",
    "app",
)


def register(app: typer.Typer) -> None:
    """Adds every verb to `app`. The modules import analyzers only when they run, so that `--help` is instant."""
    for verb in VERBS:
        app.command(verb)(importlib.import_module(f"app.commands.{verb}").run)
