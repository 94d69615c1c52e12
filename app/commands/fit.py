"""`loraxs fit`: the largest batch and the longest sequence that fit a GPU, method by method."""

from __future__ import annotations

from typing import Annotated

import typer

from analyzers.units import GIB
from app.options.common import Json, Model, open_model
from app.options.training_step import TrainingStep, takes_training_step
from app.terminal import print_json, print_table
from app.units import gib_text
from loraxs_core.errors import SettingsError


@takes_training_step
def run(
    model: Model,
    step: TrainingStep,
    gpu: Annotated[str, typer.Option(help="Memory in GB (24), or part of a GPU's name (4090, A100).")],
    methods: Annotated[str, typer.Option(help="Methods to compare, comma-separated.")] = "lora,vera,lora-xs",
    json: Json = False,
) -> None:
    """The largest batch and the longest sequence that fit a GPU; the upper end of each estimate's interval has to fit."""
    from analyzers.memory import find_gpu, fit_methods

    card = find_gpu(gpu)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise SettingsError("Give at least one method to --methods.")
    settings, *_ = [step.settings(name) for name in names]  # an unknown method is named before the search begins
    if settings.peft_config is not None:
        names = names[:1]  # it says what is trained
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
        ("method", f"largest batch of {settings.sequence} tokens", f"longest sequence at batch {settings.batch}"),
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
