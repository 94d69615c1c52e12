"""LayerNorm tuning: the normalisations are trained, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyzers.methods.method import PEFT_BENCHMARK, AdapterSpec, Method, Rate, common

if TYPE_CHECKING:
    from peft import PeftConfig

# What transformers' models call them. PEFT's own table knows no encoder.
NORMS = r"(.*[._])?([A-Za-z_]*[Ll]ayer_?[Nn]orm|norm\d?|ln_\w+|[qk]_norm)"


def config(spec: AdapterSpec) -> PeftConfig:
    """Normalisations have no linear weights: `target_modules` says nothing of them."""
    from peft import LNTuningConfig

    return LNTuningConfig(**{**common(spec), "target_modules": spec.options.get("target_modules", NORMS)})


METHODS = (
    Method(
        "ln-tuning",
        "LayerNorm tuning",
        "Every normalisation is trained, nothing else.",
        "arXiv 2312.11420",
        1e-2,
        causal=Rate(1e-4, PEFT_BENCHMARK),
        peft_type="LN_TUNING",
        ranked=False,
        config=config,
        kept=lambda module, trained_bytes, dropout: (
            0.0
        ),  # what the gradient of a normalisation needs is kept for what is below it
    ),
)
