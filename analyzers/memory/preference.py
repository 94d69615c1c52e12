"""Preference training (DPO) as TRL's DPOTrainer runs it: what is done otherwise than in other training.

The chosen and the rejected sequences of a pair go through the model as one batch (`MemorySettings.rows`), then, without
gradients, through the reference, while the model's activations wait for the backward pass. Both give log-probabilities from the fused
output matrix; the loss itself is of a number for each sequence. Source: TRL 1.16, `trainer/dpo_trainer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def switch_dropout_off(model: nn.Module) -> None:
    """``disable_dropout``, which is DPOConfig's default; the adapter's own dropout too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """No layer is checkpointed meanwhile (TRL's ``disable_gradient_checkpointing``)."""
    checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True
