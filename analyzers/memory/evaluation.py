"""What waits on the GPU during an evaluation: predictions, as transformers' ``Trainer.evaluation_loop`` keeps them.

With ``compute_metrics`` or in ``predict`` the outputs of each step are joined to those before (``EvalLoopContainer``): old, new and joined
lie side by side for a moment. They leave the GPU at the end, or after ``eval_accumulation_steps``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

MOST_JOINS = 512  # recorded; of more steps several are joined at once


def forward_passes(predictions: int, batch: int) -> list[list[int]]:
    """The forward passes to record, the first and the last: for each, the numbers of batches that join what waits before the next one."""
    steps = -(-predictions // batch)
    if steps < 2:
        return [[]]
    between = steps - 2
    stride = max(1, -(-between // MOST_JOINS))
    return [[min(stride, between - done) for done in range(0, between, stride)], []]


class Predictions:
    """All outputs so far, but for the loss and the cache, and those of the last step."""

    def __init__(self) -> None:
        self._all: list[torch.Tensor] = []
        self._last: list[torch.Tensor] = []

    def add(self, outputs: Mapping[str, object]) -> None:
        """Joins the outputs of a step."""
        kept = [value for name, value in outputs.items() if name not in ("loss", "past_key_values")]
        self._join([value.detach() for value in kept if isinstance(value, torch.Tensor)])

    def add_like_the_last(self, batches: int) -> None:
        """Joins what further `batches` would have given."""
        self._join([one.new_empty((batches * one.shape[0], *one.shape[1:])) for one in self._last])

    def _join(self, new: Iterable[torch.Tensor]) -> None:
        self._last = list(new)
        self._all = [torch.cat(pair) for pair in zip(self._all, self._last, strict=True)] if self._all else self._last
