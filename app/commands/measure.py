"""`loraxs measure`: what a task says about ranks, for the strategies that follow it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.options.common import Json, Model, Targets, open_model
from app.options.data import ColumnOptions
from app.options.groups import takes
from app.outputs import Force, refuse_file
from app.terminal import print_json, print_table, progress_bar, say


@takes("columns", ColumnOptions)
def run(
    model: Model,
    columns: ColumnOptions,
    out: Annotated[Path, typer.Option("--out", help="The signals are written here, for `loraxs plan --signals`.")],
    task: Annotated[
        str, typer.Option(help="stsb, sst2, …, or data:SOURCE for a file, a folder or a hub id of your own.")
    ] = "stsb",
    top: Annotated[int, typer.Option(help="The largest rank to measure: twice the uniform rank of the plan to be made.")] = 32,
    batches: Annotated[int, typer.Option(help="Batches to read.")] = 24,
    batch: Annotated[int, typer.Option(help="Examples a batch.")] = 16,
    sequence: Annotated[int, typer.Option(help="Tokens a text; longer texts are cut.")] = 128,
    targets: Targets = "paper",
    seed: Annotated[int, typer.Option(help="Of the order of the data and the head's start.")] = 0,
    data: Annotated[str | None, typer.Option(help="Folder or file of the task's data, where it needs one.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """What a task says about ranks: gradients, a short warm-up and activations of every layer, with how far two halves agree."""
    from analyzers.compare.measuring import MeasureSettings, measure_signals

    settings = MeasureSettings(
        task=task,
        top=top,
        batches=batches,
        batch=batch,
        sequence=sequence,
        targets=targets,
        seed=seed,
        data=data,
        columns=columns.columns,
    )
    refuse_file(out, (".json",), force=force)
    checkpoint = open_model(model, weights=True, quiet=json)
    with progress_bar(f"Measuring {task}", quiet=json) as progress:
        signals = measure_signals(checkpoint, settings, progress)
    signals.save(out)
    rows = [(kind, signals.agreement(kind, list(layers)), len(layers)) for kind, layers in signals.curves.items()]
    if json:
        print_json(
            {
                "model": signals.model,
                "task": signals.task,
                "batches": signals.batches,
                "agreement": {kind: agreement for kind, agreement, _ in rows},
                "out": str(out),
            }
        )
        return
    print_table(
        f"{signals.model} on {task}: signals of {signals.batches} batches of {batch}",
        ("signal", "layers", "agreement of two halves (Spearman)"),
        [(kind, str(count), f"{agreement:.2f}") for kind, agreement, count in rows],
        note="Where the halves hardly agree, a plan that follows the signal is mostly chance.",
    )
    say(f"Signals written to {out}.")
