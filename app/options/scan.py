"""How a checkpoint is scanned, as options of `loraxs scan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from app.options.groups import takes


@dataclass(frozen=True, kw_only=True)
class ScanChoice:
    """The options, under the names and with the defaults of `analyzers.spectra.ScanSettings` (a test compares them)."""

    top: Annotated[
        int | None, typer.Option(help="Only this many singular values of each layer; the energy beyond stays exact.")
    ] = None
    fast: Annotated[
        bool, typer.Option("--fast", help="float32 arithmetic: errors up to 1e-4 of the largest singular value.")
    ] = False
    parts: Annotated[
        bool, typer.Option("--parts", help="Fused projections also part by part (query, key, value; gate, up).")
    ] = False
    jobs: Annotated[int | None, typer.Option(help="Matrices worked on at once; one a core when left out.")] = None
    device: Annotated[str, typer.Option(help="cpu, or an accelerator as PyTorch names it, such as cuda.")] = "cpu"
    engine: Annotated[str, typer.Option(help="local, or ray for a Ray cluster that shares the file system.")] = "local"
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Use and fill the cache of spectra.")] = True


takes_scan_choice = takes("choice", ScanChoice)
