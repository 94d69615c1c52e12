"""Training without an adapter: the whole model, or its head alone."""

from __future__ import annotations

from analyzers.methods.method import BENCHMARK, PEFT_BENCHMARK, Method, Rate

METHODS = (
    Method(
        "full",
        "Full fine-tune",
        "Every weight is trained.",
        "-",
        2e-5,
        rate_source="arXiv 1810.04805, A.3",
        causal=Rate(1e-5, PEFT_BENCHMARK),
        ranked=False,
    ),
    Method(
        "head-only",
        "Head only",
        "The frozen base with a trained head: the control.",
        "-",
        3e-3,
        rate_source=BENCHMARK,
        ranked=False,
    ),
)
