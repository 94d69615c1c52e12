"""`loraxs memory`: GPU memory of a fine-tune, estimated without a GPU."""

from __future__ import annotations

from typing import Annotated

import typer

from analyzers.units import GIB
from app.options.common import Json, Model, open_model
from app.options.training_step import TrainingStep, said_value, takes_training_step
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
    from analyzers.memory.trainers import TRAINERS

    settings = step.settings(method)  # what no fine-tune can have is said before anything is fetched
    checkpoint = open_model(model, quiet=json)
    settings = settings.resolved(checkpoint)
    estimate = estimate_memory(checkpoint, settings)
    low, high = estimate.interval
    if json:
        print_json(
            {
                "model": checkpoint.name,
                "settings": step.filled(settings),
                "peak_allocated_gib": estimate.peak_allocated / GIB,
                "peak_reserved_gib": estimate.peak_reserved / GIB,
                "interval_gib": [low / GIB, high / GIB],
                "least_gib": estimate.least / GIB,
                "breakdown_gib": {part: size / GIB for part, size in estimate.breakdown.items()},
                "on_card_gib": [size / GIB for size in estimate.on_card],
                "fits": {gpu.name: estimate.fits(gpu) for gpu in GPUS},
                "how": estimate.how,
                "reasons": estimate.reasons,
            }
        )
        return
    print_table(
        f"{checkpoint.name}, {settings.label}, batch {settings.batch} x {settings.sequence} tokens: peak {gib_text(estimate.peak_reserved)} reserved "
        f"({gib_text(low)} to {gib_text(high)})",
        ("what is alive at the peak", "size", "share"),
        [(part, gib_text(size), percent_text(size / estimate.peak_allocated)) for part, size in estimate.breakdown.items()],
        note=" ".join(estimate.reasons),
    )
    print_table(
        f"Filled in as {TRAINERS[step.trainer].label} has it",
        ("setting", "value"),
        [(name, said_value(value)) for name, value in step.filled(settings).items() if not step.is_given(name)],
        note=TRAINERS[step.trainer].source + ".",
    )
    card = estimate.on_card
    print_table(
        f"On the card, CUDA context included: {gib_text(card[0])} to {gib_text(card[1])}",
        ("GPU", "fits"),
        [(gpu.name, estimate.fits(gpu)) for gpu in GPUS],
        note=f"Where a GPU is full, PyTorch gives back what it holds in vain before it fails: {gib_text(estimate.least)} are enough then.",
    )
