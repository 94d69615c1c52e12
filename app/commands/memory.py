"""`loraxs memory`: GPU memory of a fine-tune, estimated without a GPU."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands.arguments import (
    AdapterDtype,
    BaseDtype,
    Checkpointing,
    Json,
    Model,
    Optimizer,
    PlanFile,
    Quantize,
    Rank,
    Targets,
    load_plan,
    open_model,
)
from app.terminal import print_json, print_table
from app.units import gib_text, percent_text

GIB = 2**30


def run(
    model: Model,
    method: Annotated[str, typer.Option(help="lora-xs, lora, vera, full, head-only, …")] = "lora-xs",
    rank: Rank = None,
    plan: PlanFile = None,
    targets: Targets = "paper",
    batch: Annotated[int, typer.Option(help="Sequences a step and GPU.")] = 1,
    sequence: Annotated[int, typer.Option(help="Tokens a sequence.")] = 512,
    base_dtype: BaseDtype = "bf16",
    adapter_dtype: AdapterDtype = "fp32",
    checkpointing: Checkpointing = False,
    quantize: Quantize = None,
    optimizer: Optimizer = "adamw",
    mixed_precision: Annotated[
        bool, typer.Option("--mixed-precision", help="torch.autocast in bf16 (Trainer's bf16=True).")
    ] = False,
    accumulation: Annotated[int, typer.Option(help="Micro-batches an optimizer step.")] = 1,
    dropout: Annotated[float, typer.Option(help="Dropout of the adapter.")] = 0.0,
    gpus: Annotated[int, typer.Option(help="GPUs the training is spread over.")] = 1,
    sharding: Annotated[str | None, typer.Option(help="With several GPUs: ddp, zero2, zero3 or fsdp.")] = None,
    full_trace: Annotated[
        bool, typer.Option("--full-trace", help="Trace every layer instead of repeating a recorded one.")
    ] = False,
    task: Annotated[
        str | None, typer.Option(help="causal-lm or sequence-classification; the checkpoint's own when left out.")
    ] = None,
    json: Json = False,
) -> None:
    """Peak GPU memory of a training step: breakdown, interval, and the GPUs it fits."""
    from analyzers.memory import GPUS, MemorySettings, estimate_memory

    checkpoint = open_model(model, quiet=json)
    settings = MemorySettings(
        method=method,
        rank=rank,
        plan=load_plan(plan),
        targets=targets,
        batch=batch,
        sequence=sequence,
        base_dtype=base_dtype,
        adapter_dtype=adapter_dtype,
        gradient_checkpointing=checkpointing,
        quantize=quantize,
        optimizer=optimizer,
        mixed_precision=mixed_precision,
        gradient_accumulation=accumulation,
        dropout=dropout,
        gpus=gpus,
        sharding=sharding,
        full_trace=full_trace,
        task=task,
    )
    estimate = estimate_memory(checkpoint, settings)
    low, high = estimate.interval
    if json:
        print_json(
            {
                "model": checkpoint.name,
                "peak_allocated_gib": estimate.peak_allocated / GIB,
                "peak_reserved_gib": estimate.peak_reserved / GIB,
                "interval_gib": [low / GIB, high / GIB],
                "breakdown_gib": {part: size / GIB for part, size in estimate.breakdown.items()},
                "on_card_gib": [size / GIB for size in estimate.on_card],
                "how": estimate.how,
                "reasons": estimate.reasons,
            }
        )
        return
    print_table(
        f"{checkpoint.name}, {method}, batch {batch} x {sequence} tokens: peak {gib_text(estimate.peak_reserved)} reserved "
        f"({gib_text(low)} to {gib_text(high)})",
        ("what is alive at the peak", "GiB", "share"),
        [
            (part, f"{size / GIB:.2f}", percent_text(size / estimate.peak_allocated))
            for part, size in estimate.breakdown.items()
        ],
        note=" ".join(estimate.reasons),
    )
    card = estimate.on_card
    print_table(
        f"On the card, CUDA context included: {gib_text(card[0])} to {gib_text(card[1])}",
        ("GPU", "fits"),
        [(gpu.name, "yes" if gpu.memory >= card[1] else "perhaps" if gpu.memory >= card[0] else "no") for gpu in GPUS],
    )
