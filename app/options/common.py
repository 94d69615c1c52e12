"""The arguments that several verbs take, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyzers.plans import RankPlan
from app.terminal import progress_bar
from loraxs_core.errors import WeightsMissing

if TYPE_CHECKING:
    from analyzers.plans import RankPlan
    from analyzers.spectra import Spectra
    from loraxs_core.checkpoint import Checkpoint

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A catalogue name (minilm, llama-3-8b, …), a local folder, or a hub id.")
]
Adapter = Annotated[Path, typer.Argument(metavar="ADAPTER", help="The folder of an adapter, as save_pretrained wrote it.")]
Base = Annotated[str, typer.Option("--model", help="The base model: a catalogue name, a local folder, or a hub id.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Targets = Annotated[
    str,
    typer.Option(help="'paper' (what arXiv 2405.17604 adapts), 'all-linear', or module suffixes or roles, comma-separated."),
]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan.json made by `loraxs plan --out`; its ranks are used.")]
Rank = Annotated[int | None, typer.Option(help="One rank for every layer; the method's own default when left out.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write the result here as well.")]
Minus = Annotated[
    str | None, typer.Option(help="Scan the difference MODEL minus this model instead, such as a fine-tune's base.")
]


def open_model(
    model: str, minus: str | None = None, *, weights: bool = False, module: str | None = None, quiet: bool = False
) -> Checkpoint:
    """The inventory of `model` (minus another), fetched first (with a progress bar) when it is a sample or a hub id not yet here.

    weights: whether the numbers are needed; else a hub model's config is enough. module: the only layer that is needed. Raises
    WeightsMissing where there are none.
    """
    import sample_models
    from sample_models.catalogue import CATALOGUE

    for name in (model, minus) if weights else ():
        # Known without building the architecture, which takes seconds.
        if name in CATALOGUE and not CATALOGUE[name].has_weights:
            raise WeightsMissing.of(name)
    with progress_bar(f"Fetching {model}", quiet=quiet) as progress:
        return sample_models.open_model(model, minus=minus, weights=weights, module=module, progress=progress)


def scan_model(checkpoint: Checkpoint, *, quiet: bool = False, **options: Any) -> Spectra:
    """The spectra of `checkpoint`, from the cache or with a progress bar."""
    from analyzers import spectra

    with progress_bar(f"Scanning {checkpoint.name}", quiet=quiet) as progress:
        return spectra.scan(checkpoint, progress=progress, **options)


def load_plan(path: Path | None) -> RankPlan | None:
    """The plan saved at `path`, or None."""
    if path is None:
        return None
    return RankPlan.load(path)
