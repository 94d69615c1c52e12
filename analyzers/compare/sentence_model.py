"""A sentence encoder with a linear head: each text is read alone, pairs are compared by their vectors.

On a CPU the time goes by tokens, padding included. The texts of a batch, both sides of its pairs together, are therefore read as one row
without padding, where the encoder can be (`packed_texts`), else in groups of like length, each padded to its own longest text; what comes
out is the same to rounding.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from analyzers.compare.packed_texts import PACKED, can_pack, groups, read_packed
from analyzers.compare.tasks import CLASSIFICATION, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Texts = dict[str, torch.Tensor]  # input_ids, attention_mask, …: (texts, tokens) each

GROUP_TOKENS = 64  # what reading one group more costs, in tokens (MiniLM, one thread)
REMEMBERED_BYTES = 32 * 1024**2


class SentenceModel(nn.Module):
    """A sentence encoder with a linear head on the averaged token vectors.

    Each text gives u (hidden,), scaled to length sqrt(hidden) so that its entries are of order 1. Features: u for one text,
    [|u - v|, u * v] for two. The loss is the mean squared error for one output, else cross-entropy.

    remembers: for an encoder that never changes. What it makes of a batch without dropout is kept, so that the head alone is evaluated
    again and again at the price of once.
    """

    def __init__(self, encoder: PreTrainedModel, task: Task, pairs: bool):
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        self.pairs = pairs
        self.classification = task.kind == CLASSIFICATION
        self.head = nn.Linear(encoder.config.hidden_size * (2 if pairs else 1), task.outputs)
        self.first_position = can_pack(encoder)
        self.remembers = False
        self._remembered: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def embed(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) ids and mask -> (batch, hidden)."""
        states = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return _of_like_size(mean)

    def forward(self, first: Texts, second: Texts | None = None, labels: torch.Tensor | None = None) -> dict[str, Any]:
        vectors = self._vectors([first, second] if second is not None and self.pairs else [first])
        features = vectors
        if self.pairs:
            one, other = vectors.chunk(2)
            features = torch.cat([(one - other).abs(), one * other], dim=-1)
        logits = self.head(features)
        if labels is None:
            return {"logits": logits}
        if self.classification:
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        return {"loss": nn.functional.mse_loss(logits.squeeze(-1), labels), "logits": logits}

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("the adapter and the head are saved, not the whole model")

    def _vectors(self, sides: list[Texts]) -> torch.Tensor:
        """(all texts, hidden): of the first side, then of the second."""
        if self.encoder.training or not self.remembers:
            return self._read(sides)
        key = _digest(sides)
        found = self._remembered.get(key)
        if found is None:
            found = self._remembered[key] = self._read(sides).detach()
            while sum(one.nbytes for one in self._remembered.values()) > REMEMBERED_BYTES:
                self._remembered.popitem(last=False)
        return found

    def _read(self, sides: list[Texts]) -> torch.Tensor:
        masks = [texts["attention_mask"] for texts in sides]
        if masks[0].device.type != "cpu" or not all(_is_padded_behind(mask) for mask in masks):
            return torch.cat([self.embed(**texts) for texts in sides])
        texts = _together(sides)
        lengths = texts["attention_mask"].sum(1)
        order = lengths.argsort(stable=True)
        texts = {name: value[order] for name, value in texts.items()}
        # Another encoder may have been put in its place, whose attention would let the texts of a row see one another.
        in_one_row = self.first_position is not None and self.encoder.config._attn_implementation == PACKED
        read = self._in_one_row if in_one_row else self._in_groups
        return read(texts, lengths[order].tolist())[order.argsort()]

    def _in_groups(self, texts: Texts, lengths: list[int]) -> torch.Tensor:
        parts, begin = [], 0
        for end, longest in groups(lengths):
            parts.append(self.embed(**{name: value[begin:end, :longest] for name, value in texts.items()}))
            begin = end
        return torch.cat(parts)

    def _in_one_row(self, texts: Texts, lengths: list[int]) -> torch.Tensor:
        states = read_packed(self.encoder, texts, lengths, self.first_position or 0)
        tokens = torch.tensor(lengths)
        text = torch.arange(len(lengths)).repeat_interleave(tokens)
        return _of_like_size(states.new_zeros(len(lengths), states.shape[1]).index_add(0, text, states) / tokens[:, None])


def _of_like_size(mean: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(mean, dim=-1) * mean.shape[-1] ** 0.5


def _together(sides: Sequence[Texts]) -> Texts:
    """The texts of all sides as one batch."""
    width = max(texts["attention_mask"].shape[1] for texts in sides)
    pad = nn.functional.pad
    return {name: torch.cat([pad(one[name], (0, width - one[name].shape[1])) for one in sides]) for name in sides[0]}


def _is_padded_behind(mask: torch.Tensor) -> bool:
    """Whether every text is some tokens, at least one, and padding after them: what is cut off there moves no token."""
    return bool(mask[:, 0].all()) and not bool((mask[:, 1:] > mask[:, :-1]).any())


def _digest(sides: Sequence[Texts]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for texts in sides:
        for name, value in texts.items():
            digest.update(repr((name, tuple(value.shape))).encode())
            digest.update(value.contiguous().cpu().numpy())
    return digest.digest()
