"""`loraxs memory`: GPU memory of a fine-tune, estimated without a GPU."""

from __future__ import annotations

from typing import Annotated

import typer

from analyzers.units import GIB
from app.options.common import Json, Model, open_model
from app.options.training_step import TrainingStep, takes_training_step
from app.terminal import print_json, print_table
from app.units import gib_text, percent_text


@takes_training_step
def run(
    model: Model,
    step: TrainingStep,
    method: Annotated[str, typer.Option(help="lora-xs, lora, vera, full, head-only, …")] = "lora-xs",
    json: Json = False,
) -> None:
    """Peak GPU memory of a training step: breakdown, interval, and the GPUs it fits."""
    from analyzers.memory import GPUS, estimate_memory

    settings = step.settings(method)  # what no fine-tune can have is said before anything is fetched
    checkpoint = open_model(model, quiet=json)
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
        f"{checkpoint.name}, {method}, batch {step.batch} x {step.sequence} tokens: peak {gib_text(estimate.peak_reserved)} reserved "
        f"({gib_text(low)} to {gib_text(high)})",
        ("what is alive at the peak", "size", "share"),
        [(part, gib_text(size), percent_text(size / estimate.peak_allocated)) for part, size in estimate.breakdown.items()],
        note=" ".join(estimate.reasons),
    )
    card = estimate.on_card
    print_table(
        f"On the card, CUDA context included: {gib_text(card[0])} to {gib_text(card[1])}",
        ("GPU", "fits"),
        [(gpu.name, "yes" if gpu.memory >= card[1] else "perhaps" if gpu.memory >= card[0] else "no") for gpu in GPUS],
    )
