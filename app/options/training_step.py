"""What a training step is made of, as options of the verbs about GPU memory: spelled once, for all of them and for the page.

`TrainingStep` holds every option; a verb that is decorated with `takes_training_step` has all of them. `words`
spells settings as such options, which is how the page says the command that reproduces what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzers.methods.peft_configs import read_config
from app.options.common import PlanFile, Rank, Targets, load_plan
from app.options.groups import spelled, takes

if TYPE_CHECKING:
    from analyzers.memory import MemorySettings


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The options, under the names that `analyzers.memory.MemorySettings` has for them; it documents what they mean. What is
    None is what the `trainer` sets."""

    rank: Rank = None
    plan: PlanFile = None
    targets: Targets = "paper"
    trainer: Annotated[
        str,
        typer.Option(
            help="Whose defaults hold for what is left out: trainer (transformers' Trainer), sft or dpo (TRL's SFTTrainer and DPOTrainer) or "
            "peft-bench (a plain loop, as in PEFT's method comparison)."
        ),
    ] = "trainer"
    peft_config: Annotated[
        Path | None, typer.Option("--peft-config", help="An adapter_config.json of any PEFT method, instead of --method.")
    ] = None
    batch: Annotated[int | None, typer.Option(help="Sequences a step and GPU; 8 with Trainer.")] = None
    sequence: Annotated[int | None, typer.Option(help="Tokens a sequence, the longest of the batch; 512 when left out.")] = None
    padding: Annotated[
        bool | None,
        typer.Option(
            "--padding/--no-padding",
            help="Whether sequences are padded, and so masked; as usual when left out: if there are several.",
        ),
    ] = None
    padding_free: Annotated[
        bool | None, typer.Option("--padding-free/--no-padding-free", help="All sequences in one row (packing).")
    ] = None
    base_dtype: Annotated[
        str | None,
        typer.Option(help="Precision of the frozen weights: bf16, fp16 or fp32; the checkpoint's own when left out."),
    ] = None
    adapter_dtype: Annotated[str | None, typer.Option(help="Precision of the trained adapter; PEFT's is fp32.")] = None
    mixed_precision: Annotated[
        bool | None,
        typer.Option("--mixed-precision/--no-mixed-precision", help="torch.autocast in bf16 (Trainer's bf16=True)."),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--checkpointing/--no-checkpointing",
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Gradient checkpointing.",
        ),
    ] = None
    reentrant_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--reentrant/--no-reentrant",
            help="use_reentrant of checkpointing, which matters to FSDP; as the version of transformers has it when left out.",
        ),
    ] = None
    gradient_accumulation: Annotated[int | None, typer.Option("--accumulation", help="Micro-batches an optimizer step.")] = None
    quantize: Annotated[str | None, typer.Option(help="4bit or 8bit base.")] = None
    double_quantization: Annotated[
        bool | None, typer.Option("--double-quantization/--no-double-quantization", help="Of the constants of a 4-bit base.")
    ] = None
    kbit_prepared: Annotated[
        bool | None,
        typer.Option(
            "--kbit-prepared/--no-kbit-prepared",
            help="After PEFT's prepare_model_for_kbit_training, which casts what is not quantised to fp32.",
        ),
    ] = None
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="adamw-fused (Trainer's), adamw (foreach), adamw-loop, adamw-8bit, paged-adamw-8bit, lion, adafactor, sgd, … or a "
            "name of TrainingArguments.optim."
        ),
    ] = None
    optim_args: Annotated[
        str | None, typer.Option(help="TrainingArguments.optim_args, such as 'rank=64' of GaLore or 'momentum=0.9' of SGD.")
    ] = None
    optim_target_modules: Annotated[
        str | None,
        typer.Option(
            help="What GaLore and APOLLO project: all-linear, parts of names, comma-separated, or a regular expression."
        ),
    ] = None
    loss: Annotated[
        str | None, typer.Option(help="Of a causal model: transformers, trl (fused, SFTTrainer's), liger or cut-cross-entropy.")
    ] = None
    preference: Annotated[
        str | None, typer.Option(help="Preference training on pairs: dpo, dpo-model or dpo-precomputed (--trainer dpo).")
    ] = None
    dropout: Annotated[float | None, typer.Option(help="Dropout of the adapter.")] = None
    task: Annotated[
        str | None, typer.Option(help="causal-lm, sequence-classification or seq2seq; the checkpoint's own when left out.")
    ] = None
    labels: Annotated[int | None, typer.Option(help="Classes of a classifier.")] = None
    attention: Annotated[
        str | None, typer.Option(help="sdpa, eager or flash_attention_2; transformers' choice when left out.")
    ] = None
    keep_logits: Annotated[
        bool | None,
        typer.Option(
            "--keep-logits/--no-keep-logits",
            help="The loop holds the model's outputs during the backward pass (Trainer does not).",
        ),
    ] = None
    use_cache: Annotated[
        bool | None,
        typer.Option(
            "--use-cache/--no-use-cache",
            help="The model builds its key-value cache in training too (Trainer switches it off).",
        ),
    ] = None
    empty_cache: Annotated[
        bool | None,
        typer.Option(
            "--empty-cache/--no-empty-cache", help="PyTorch's cache is emptied after a step (torch_empty_cache_steps)."
        ),
    ] = None
    expandable_segments: Annotated[
        bool | None,
        typer.Option(
            "--expandable-segments/--no-expandable-segments", help="Of PyTorch's allocator (PYTORCH_CUDA_ALLOC_CONF)."
        ),
    ] = None
    offload_optimizer: Annotated[
        bool | None,
        typer.Option("--offload-optimizer/--no-offload-optimizer", help="The optimizer's states and its step on the CPU."),
    ] = None
    offload_activations: Annotated[
        bool | None,
        typer.Option(
            "--offload-activations/--no-offload-activations",
            help="What is saved for the backward pass waits on the CPU (TRL's activation_offloading).",
        ),
    ] = None
    eval_batch: Annotated[
        int | None, typer.Option(help="Sequences a step of the evaluation between training steps; none when left out.")
    ] = None
    eval_predictions: Annotated[
        int | None,
        typer.Option(help="Sequences of the evaluation whose logits wait on the GPU for compute_metrics or predict."),
    ] = None
    gpus: Annotated[int | None, typer.Option(help="GPUs the training is spread over; figures are for one of them.")] = None
    sharding: Annotated[str | None, typer.Option(help="With several GPUs: ddp (the default), zero2, zero3 or fsdp.")] = None
    transformers_version: Annotated[
        str | None, typer.Option(help="Of transformers, such as 4.48, where it is not the installed one.")
    ] = None
    torch_version: Annotated[str | None, typer.Option(help="Of PyTorch, where it is not the installed one.")] = None
    full_trace: Annotated[
        bool | None,
        typer.Option("--full-trace/--no-full-trace", help="Trace every layer instead of repeating a recorded one."),
    ] = None
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run the Python code in the model's folder, with your rights, where transformers does not know the architecture.",
        ),
    ] = False

    def settings(self, method: str) -> MemorySettings:
        """The fine-tune by `method`. Raises SettingsError for values that no fine-tune can have, and for a plan or a configuration
        that cannot be read."""
        from analyzers.memory import MemorySettings

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"plan": load_plan(self.plan), "peft_config": self.peft_config and read_config(self.peft_config)}
        if self.optim_target_modules is not None:
            values["optim_target_modules"] = _modules(self.optim_target_modules)
        name = values.pop("trainer")
        return MemorySettings.preset(name, method=method, **{key: value for key, value in values.items() if value is not None})

    def is_given(self, name: str) -> bool:
        """Whether the option was given, rather than filled in."""
        value = getattr(self, name)
        return value is not None and value is not False

    def filled(self, settings: MemorySettings) -> dict[str, object]:
        """The values of `SHOWN` that the estimate is of, whoever set them; those without a meaning here are left out."""
        idle = {"preference": not settings.preference, "adapter_dtype": not settings.trains_adapter}
        return {name: getattr(settings, name) for name in SHOWN if not idle.get(name)}


def _modules(said: str) -> str | list[str]:
    """``optim_target_modules`` as `TrainingArguments` takes them: parts of names are a list, a regular expression a string."""
    if said.replace("_", "-") == "all-linear" or set(said) & set("*\\()[]|^$+?{}"):
        return said
    return [name.strip() for name in said.split(",") if name.strip()]


# What a user should see filled in; all else is off, or the usual one, unless it is given.
SHOWN = (
    "batch", "sequence", "base_dtype", "adapter_dtype", "mixed_precision", "gradient_checkpointing", "optimizer", "loss", "preference", "attention",
    "keep_logits", "use_cache", "empty_cache",
)  # fmt: skip


def said_value(value: object) -> str:
    """A setting's value in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "as usual" if value is None else str(value)


takes_training_step = takes("step", TrainingStep)


def words(settings: Mapping[str, object]) -> str:
    """Values of `MemorySettings` as options: batch and sequence always, of the others those that differ from the default.

    >>> words({"batch": 4, "sequence": 512, "padding": False, "optimizer": "adamw", "gradient_checkpointing": True})
    '--batch 4 --sequence 512 --no-padding --checkpointing --optimizer adamw'
    """
    from analyzers.memory import MemorySettings

    defaults = {field.name: field.default for field in fields(MemorySettings)}
    return spelled(TrainingStep, settings, always=("batch", "sequence"), defaults=defaults)
