"""Training without an adapter: the whole model, or its head alone."""

from __future__ import annotations

from analyzers.methods.method import Method

METHODS = (
    Method("full", "Full fine-tune", "Every weight is trained.", "-", 2e-5, ranked=False),
    Method("head-only", "Head only", "The frozen base with a trained head: the control.", "-", 3e-3, ranked=False),
)
