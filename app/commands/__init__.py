"""One file a verb. A verb is a function `run` with Typer annotations and a docstring, or a `GROUP` of several under one name; `register`
puts them on the command."""

from __future__ import annotations

import typer

from loraxs_core.registry import found

# In the order of the work; one that is not named here comes after these.
ORDER = (
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


VERBS = found(__name__, "run", first=ORDER)
GROUPS = found(__name__, "GROUP")


def register(app: typer.Typer) -> None:
    """Adds every verb to `app`. The modules import analyzers only when they run, so that `--help` is instant."""
    for verb, run in VERBS.items():
        app.command(verb)(run)
    for verb, group in GROUPS.items():
        app.add_typer(group, name=verb)
