"""`loraxs fit`: the largest batch and the longest sequence that fit a GPU, method by method."""

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
from app.units import gib_text

GIB = 2**30


def run(
    model: Model,
    gpu: Annotated[str, typer.Option(help="Memory in GB (24), or part of a GPU's name (4090, A100).")],
    methods: Annotated[str, typer.Option(help="Methods to compare, comma-separated.")] = "lora,vera,lora-xs",
    rank: Rank = None,
    plan: PlanFile = None,
    targets: Targets = "paper",
    batch: Annotated[int, typer.Option(help="Sequences a step, for the longest sequence.")] = 1,
    sequence: Annotated[int, typer.Option(help="Tokens a sequence, for the largest batch.")] = 512,
    base_dtype: BaseDtype = "bf16",
    adapter_dtype: AdapterDtype = "fp32",
    checkpointing: Checkpointing = False,
    quantize: Quantize = None,
    optimizer: Optimizer = "adamw",
    json: Json = False,
) -> None:
    """The largest batch and the longest sequence that fit a GPU; the upper end of each estimate's interval has to fit."""
    from analyzers.memory import MemorySettings, find_gpu, fit_methods

    card = find_gpu(gpu)
    settings = MemorySettings(
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
    )
    names = [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        settings.but(method=name)  # an unknown method is named before the search begins
    checkpoint = open_model(model, quiet=json)
    found = fit_methods(checkpoint, settings, card, names)
    if json:
        print_json(
            {
                "model": checkpoint.name,
                "gpu": card.name,
                "usable_gib": card.bytes / GIB,
                "methods": [
                    {
                        "method": one.method,
                        "batch": one.batch,
                        "sequence": one.sequence,
                        "sequence_limited_by_model": one.limited_by_model,
                        "peak_reserved_gib_at_batch": one.at_batch and one.at_batch.peak_reserved / GIB,
                        "peak_reserved_gib_at_sequence": one.at_sequence and one.at_sequence.peak_reserved / GIB,
                    }
                    for one in found
                ],
            }
        )
        return
    print_table(
        f"{checkpoint.name} on {card.name} ({gib_text(card.bytes)} usable)",
        ("method", f"largest batch of {sequence} tokens", f"longest sequence at batch {batch}"),
        [
            (
                one.method,
                f"{one.batch}" if one.batch else "none fits",
                f"{one.sequence}{' (the model has no more positions)' if one.limited_by_model else ''}"
                if one.sequence
                else "none fits",
            )
            for one in found
        ],
        note="The upper end of each estimate's interval fits.",
    )
