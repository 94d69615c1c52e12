"""The options that say where the trials of a comparison run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True)
class ExecutionOptions:
    """Which processes do the work. Nothing of it changes what is compared."""

    executor: Annotated[str, typer.Option(help="local: on this machine; ray: on a Ray cluster.")] = "local"
    workers: Annotated[int | None, typer.Option(help="Trials at a time; as many as there is room for when left out.")] = None
    processes: Annotated[int, typer.Option(help="Processes that train each trial together, by accelerate launch.")] = 1
