"""`loraxs size`: what an adapter weighs on disk, to the byte, what a fleet of them costs to keep, and what a run writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from app.options.common import Json, Model, load_plan, open_model
from app.options.storage import AdapterChoice, Adapters, methods_of, ranks_of, takes_adapter_choice
from app.terminal import print_json, print_table
from app.units import bytes_text, count_text, money_text

if TYPE_CHECKING:
    from analyzers.plans import RankPlan
    from analyzers.storage import AdapterSize, RunBytes


@takes_adapter_choice
def run(
    model: Model,
    choice: AdapterChoice,
    method: Annotated[
        str, typer.Option(help="lora-xs, lora, vera, …, or several, comma-separated; 'all' is LoRA, VeRA and LoRA-XS.")
    ] = "all",
    adapters: Adapters = 1,
    steps: Annotated[
        int | None, typer.Option(help="Also: bytes a training run of this many steps writes, optimizer state included.")
    ] = None,
    save_every: Annotated[int, typer.Option(help="Its save interval in steps.")] = 500,
    keep: Annotated[
        int | None, typer.Option(help="Checkpoints it keeps (Trainer's save_total_limit); all when left out.")
    ] = None,
    optimizer: Annotated[
        str, typer.Option(help="Its optimizer: adamw, adamw-8bit, adafactor, sgd, sgd-momentum, ….")
    ] = "adamw",
    json: Json = False,
) -> None:
    """Adapter size to the byte, the storage of many adapters, and what a training run writes."""
    from analyzers.storage import adapter_size, check_run, fleet_cost, run_bytes
    from loraxs_core.architecture import left_out

    check_run(save_every=save_every, keep=keep, optimizer=optimizer)
    names, loaded = methods_of(method), load_plan(choice.plan)
    ranks = ranks_of(choice.rank, names)
    checkpoint = open_model(model, quiet=json)
    options = choice.options or {}
    results = []
    for name in names:
        layers = _layers(name, ranks, loaded, choice.targets)
        size = adapter_size(checkpoint, name, dtype=choice.dtype, task=choice.task, options=options.get(name), **layers)
        fleet = fleet_cost(size, adapters=adapters, replicas=choice.replicas, price_per_gb_month=choice.price)
        results.append((size, fleet))
    runs = []
    if steps is not None:
        runs = [run_bytes(size, steps=steps, save_every=save_every, keep=keep, optimizer=optimizer) for size, _ in results]
    if json:
        rows = [{**size.to_dict(), **fleet.to_dict()} for size, fleet in results]
        for row, written in zip(rows, runs, strict=False):
            row["run"] = written.to_dict()
        print_json({"model": checkpoint.name, **rows[0]} if len(rows) == 1 else {"model": checkpoint.name, "methods": rows})
        return
    print_table(
        f"{checkpoint.name}: adapters of {choice.dtype}, {count_text(adapters)} of them, {choice.replicas} "
        f"{'copy' if choice.replicas == 1 else 'copies'} each at {money_text(choice.price)} per GB and month",
        ("method", "rank", "trained numbers", "adapter file", "exact bytes", "fleet", "per month"),
        [
            (
                size.method,
                size.rank_text,
                f"{size.trainable:,}",
                bytes_text(size.file_bytes),
                f"{size.file_bytes:,}",
                bytes_text(fleet.fleet_bytes),
                money_text(fleet.cost_per_month),
            )
            for size, fleet in results
        ],
        note=" ".join(_notes([size for size, _ in results], left_out(checkpoint))),
    )
    if runs:
        _print_runs([size for size, _ in results], runs, steps, save_every, optimizer)


def _notes(sizes: list[AdapterSize], left_out: str) -> list[str]:
    notes = ["Adapter file: adapter_model.safetensors as save_pretrained writes it, header included; 1 GB = 10⁹ bytes."]
    if copied := max(size.copied for size in sizes):
        notes.append(
            f"{copied:,} of its numbers are the base's own: PEFT writes an embedding or head that is a target along, unless it is "
            "saved with save_embedding_layers=False."
        )
    return [*notes, left_out] if left_out else notes


def _layers(name: str, ranks: dict[str, int], plan: RankPlan | None, targets: str) -> dict:
    """Layers and ranks of a method. A plan is for the methods with a rank per layer; the others go on its layers too."""
    if plan is None:
        return {"rank": ranks.get(name), "targets": targets}
    if name == "lora-xs" or (name == "lora" and name not in ranks):
        return {"plan": plan}
    return {"rank": ranks.get(name), "targets": tuple(plan.ranks)}


def _print_runs(sizes: list[AdapterSize], runs: list[RunBytes], steps: int, save_every: int, optimizer: str) -> None:
    from analyzers.storage import OPTIMIZERS

    print_table(
        f"A run of {steps:,} steps that saves every {save_every:,}",
        ("method", "checkpoints", "one checkpoint", "its optimizer state", "written", "left on disk"),
        [
            (
                size.method,
                f"{written.saves:,}",
                bytes_text(written.each),
                bytes_text(written.optimizer),
                bytes_text(written.written),
                bytes_text(written.on_disk),
            )
            for size, written in zip(sizes, runs, strict=True)
        ],
        note=f"Optimizer: {OPTIMIZERS[optimizer]}. The Trainer's own files are about 23 kB a checkpoint.",
    )
