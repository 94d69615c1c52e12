"""`loraxs size`: what an adapter weighs on disk, to the byte, and what a fleet of them costs to keep."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands.arguments import Json, Model, PlanFile, Rank, Targets, load_plan, open_model
from app.terminal import print_json, print_table
from app.units import bytes_text, count_text, money_text


def run(
    model: Model,
    method: Annotated[
        str, typer.Option(help="lora-xs, lora, vera, …; 'all' puts LoRA, VeRA and LoRA-XS side by side.")
    ] = "all",
    rank: Rank = None,
    plan: PlanFile = None,
    targets: Targets = "paper",
    dtype: Annotated[str, typer.Option(help="Precision of the saved adapter: float32, bfloat16 or float16.")] = "float32",
    task: Annotated[
        str | None,
        typer.Option(help="Model class: base, causal-lm or sequence-classification; the checkpoint's own when left out."),
    ] = None,
    adapters: Annotated[int, typer.Option(help="Adapters kept: one a task, one a user.")] = 1,
    replicas: Annotated[int, typer.Option(help="Copies of each.")] = 1,
    price: Annotated[float, typer.Option(help="Storage price in $ per GB and month.")] = 0.023,
    steps: Annotated[
        int | None, typer.Option(help="Also: bytes a training run of this many steps writes, optimizer state included.")
    ] = None,
    save_every: Annotated[int, typer.Option(help="Its save interval in steps.")] = 500,
    keep: Annotated[
        int | None, typer.Option(help="Checkpoints it keeps (Trainer's save_total_limit); all when left out.")
    ] = None,
    json: Json = False,
) -> None:
    """Adapter size to the byte, the storage of many adapters, and what a training run writes."""
    from analyzers.methods import MAIN_METHODS
    from analyzers.storage import adapter_size, fleet_cost, run_bytes

    checkpoint = open_model(model, quiet=json)
    loaded = load_plan(plan)
    results = []
    for name in MAIN_METHODS if method == "all" else (method,):
        ranks = {"plan": loaded} if loaded is not None and name in ("lora", "lora-xs") else {"rank": rank}
        size = adapter_size(checkpoint, name, targets=targets, dtype=dtype, task=task, **ranks)
        results.append((size, fleet_cost(size, adapters=adapters, replicas=replicas, price_per_gb_month=price)))
    runs = [run_bytes(size, steps=steps, save_every=save_every, keep=keep) for size, _ in results] if steps is not None else []
    if json:
        rows = [{**size.to_dict(), **fleet.to_dict()} for size, fleet in results]
        for row, written in zip(rows, runs, strict=False):
            row["run"] = written.to_dict()
        print_json({"model": checkpoint.name, **rows[0]} if len(rows) == 1 else {"model": checkpoint.name, "methods": rows})
        return
    print_table(
        f"{checkpoint.name}: adapters of {dtype}, {count_text(adapters)} of them, {replicas} "
        f"{'copy' if replicas == 1 else 'copies'} each at {money_text(price)} per GB and month",
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
        note="Adapter file: adapter_model.safetensors as save_pretrained writes it, header included; 1 GB = 10⁹ bytes.",
    )
    if runs:
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
                for (size, _), written in zip(results, runs, strict=True)
            ],
            note="AdamW's two moments in the adapter's precision; the Trainer's own files are about 23 kB a checkpoint.",
        )
