"""What a training step is made of, as options of the verbs about GPU memory: spelled once, for all of them and for the page.

`TrainingStep` holds every option with its default; a verb that is decorated with `takes_training_step` has all of them. `words`
spells settings as such options, which is how the page says the command that reproduces what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer

from app.options.common import PlanFile, Rank, Targets, load_plan
from app.options.groups import spelled, takes

if TYPE_CHECKING:
    from analyzers.memory import MemorySettings


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The options, under the names that `analyzers.memory.MemorySettings` has for them; it documents what they mean."""

    rank: Rank = None
    plan: PlanFile = None
    targets: Targets = "paper"
    batch: Annotated[int, typer.Option(help="Sequences a step and GPU.")] = 1
    sequence: Annotated[int, typer.Option(help="Tokens a sequence, the longest of the batch.")] = 512
    padding: Annotated[
        bool | None,
        typer.Option(
            "--padding/--no-padding",
            help="Whether sequences are padded, and so masked; as usual when left out: if there are several.",
        ),
    ] = None
    base_dtype: Annotated[str, typer.Option(help="Precision of the frozen weights: bf16, fp16 or fp32.")] = "bf16"
    adapter_dtype: Annotated[str, typer.Option(help="Precision of the trained adapter.")] = "fp32"
    mixed_precision: Annotated[
        bool, typer.Option("--mixed-precision", help="torch.autocast in bf16 (Trainer's bf16=True).")
    ] = False
    gradient_checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Gradient checkpointing.")] = False
    gradient_accumulation: Annotated[int, typer.Option("--accumulation", help="Micro-batches an optimizer step.")] = 1
    quantize: Annotated[str | None, typer.Option(help="4bit or 8bit base.")] = None
    double_quantization: Annotated[
        bool, typer.Option("--double-quantization/--no-double-quantization", help="Of the constants of a 4-bit base.")
    ] = True
    optimizer: Annotated[str, typer.Option(help="adamw (foreach), adamw-fused, adamw-loop, adamw-8bit, adafactor or sgd.")] = (
        "adamw"
    )
    dropout: Annotated[float, typer.Option(help="Dropout of the adapter.")] = 0.0
    task: Annotated[
        str | None, typer.Option(help="causal-lm, sequence-classification or seq2seq; the checkpoint's own when left out.")
    ] = None
    labels: Annotated[int, typer.Option(help="Classes of a classifier.")] = 2
    attention: Annotated[str | None, typer.Option(help="sdpa or eager; transformers' choice when left out.")] = None
    keep_logits: Annotated[
        bool,
        typer.Option("--keep-logits", help="The loop holds the model's outputs during the backward pass (Trainer does not)."),
    ] = False
    use_cache: Annotated[
        bool,
        typer.Option("--use-cache", help="The model builds its key-value cache in training too (Trainer switches it off)."),
    ] = False
    gpus: Annotated[int, typer.Option(help="GPUs the training is spread over; figures are for one of them.")] = 1
    sharding: Annotated[str | None, typer.Option(help="With several GPUs: ddp (the default), zero2, zero3 or fsdp.")] = None
    full_trace: Annotated[bool, typer.Option("--full-trace", help="Trace every layer instead of repeating a recorded one.")] = (
        False
    )
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run the Python code in the model's folder, with your rights, where transformers does not know the architecture.",
        ),
    ] = False

    def settings(self, method: str) -> MemorySettings:
        """The fine-tune by `method`. Raises SettingsError for values that no fine-tune can have, and for a plan that cannot be read."""
        from analyzers.memory import MemorySettings

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return MemorySettings(method=method, **values | {"plan": load_plan(self.plan)})


takes_training_step = takes("step", TrainingStep)


def words(settings: Mapping[str, object]) -> str:
    """Values of `MemorySettings` as options: batch and sequence always, of the others those that differ from the default.

    >>> words({"batch": 4, "sequence": 512, "padding": False, "optimizer": "adamw", "gradient_checkpointing": True})
    '--batch 4 --sequence 512 --no-padding --checkpointing'
    """
    return spelled(TrainingStep, settings, always=("batch", "sequence"))
