"""What a user of a training loop gets without asking: presets of `MemorySettings`, each of which can be overridden.

Defaults of ``Trainer`` are those of `MemorySettings` itself. A test compares the presets with the installed libraries' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_core.errors import SettingsError


@dataclass(frozen=True)
class Trainer:
    """A training loop. settings: what it sets otherwise than `MemorySettings` does. quantized: what it sets besides when the base
    is quantised. notes: what settings do not say, for the user."""

    label: str
    source: str
    settings: Mapping[str, object] = field(default_factory=dict)
    quantized: Mapping[str, object] = field(default_factory=dict)

    def fill(self, given: Mapping[str, object]) -> dict[str, object]:
        """`given`, and for all else what the loop sets."""
        return {**self.settings, **(self.quantized if given.get("quantize") else {}), **given}


TRAINERS: dict[str, Trainer] = {
    "trainer": Trainer(
        "transformers' Trainer", "TrainingArguments of transformers 5.23; the model as from_pretrained loads it"
    ),
    "sft": Trainer(
        "TRL's SFTTrainer",
        "SFTConfig of TRL 1.16; a model given by its name is loaded in float32",
        {
            "base_dtype": "fp32",
            "mixed_precision": True,
            "gradient_checkpointing": True,
            "sequence": 1024,
            "loss": "trl",
        },
        {"adapter_dtype": "bf16"},
    ),
    "dpo": Trainer(
        "TRL's DPOTrainer",
        "DPOConfig of TRL 1.16; a model given by its name is loaded in float32; the reference runs after the model, whose activations wait",
        {
            "base_dtype": "fp32",
            "mixed_precision": True,
            "gradient_checkpointing": True,
            "sequence": 1024,
            "loss": "trl",
            "preference": "dpo",
        },
        {"adapter_dtype": "bf16"},
    ),
    "peft-bench": Trainer(
        "a plain loop, as PEFT's method comparison has it",
        "method_comparison/MetaMathQA/run.py of PEFT: outputs and cache live through the backward pass; PyTorch's is emptied every tenth step",
        {
            "base_dtype": "bf16",
            "batch": 4,
            "sequence": 768,
            "padding": True,
            "optimizer": "adamw",
            "keep_logits": True,
            "use_cache": True,
            "empty_cache": True,
        },
    ),
}


def trainer(name: str) -> Trainer:
    """The preset called `name`. Raises SettingsError listing those there are."""
    try:
        return TRAINERS[name]
    except KeyError:
        raise SettingsError(f"Unknown trainer {name!r}; there are {', '.join(TRAINERS)}.") from None
