"""Texts of any lengths read as one row of tokens, without padding, by an encoder that knows position ids.

All but attention works on each token by itself, so that a batch can go through linear layers as one row: (1, tokens of all texts). Where one
text begins is said as transformers says it to Flash Attention (`cu_seq_lens_q`); attention is PyTorch's own on texts of like length, each
padded to the longest of its group only there. Whether an encoder can be read like that is found out by doing it (`can_pack`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = "loraxs_packed"  # the name of this attention in a model's configuration
GROUP_TOKENS = 64  # what one more group costs in attention, in padded tokens (MiniLM, one thread)
ROW_TOKENS = (
    64  # a row is filled up to a multiple: oneDNN prepares its code for each number of rows anew and keeps it, some MB each
)
_TRIED = (5, 9, 2, 7)  # tokens of the texts that `can_pack` reads
_NEAR = 1e-4  # of the largest number: how far the two ways may round apart


def read_packed(
    encoder: PreTrainedModel, texts: dict[str, torch.Tensor], lengths: Sequence[int], first: int = 0
) -> torch.Tensor:
    """(tokens, hidden): the last hidden states of all texts, one after the other.

    texts: ids and what goes with them, (texts, width) each, padded behind. lengths: tokens of each text, ascending. first: the position id
    of a text's first token.
    """
    width = texts["input_ids"].shape[1]
    places = torch.arange(width)
    real = places < torch.tensor(lengths)[:, None]
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    rows = {name: value[real] for name, value in texts.items() if name != "attention_mask"}
    rows["position_ids"] = (places + first).expand(real.shape)[real]
    tokens = sum(lengths)
    filled = {name: F.pad(value, (0, -tokens % ROW_TOKENS), value=int(value[0]))[None] for name, value in rows.items()}
    return encoder(**filled, cu_seq_lens_q=ends).last_hidden_state[0, :tokens]


def can_pack(encoder: PreTrainedModel) -> int | None:
    """The position id of a text's first token, where `encoder` gives the same numbers for texts in one row as for texts by themselves;
    it then has this attention. None, and nothing is changed, where it does not."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PACKED, _attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    before = encoder.config._attn_implementation
    if encoder.training or before != "sdpa":
        return None
    vocabulary = encoder.get_input_embeddings().num_embeddings
    drawn = torch.Generator().manual_seed(0)
    ids = [torch.randint(vocabulary // 2, vocabulary, (length,), generator=drawn) for length in sorted(_TRIED)]
    padding = getattr(encoder.config, "pad_token_id", None) or 0
    with torch.no_grad():
        alone = torch.cat(
            [encoder(input_ids=one[None], attention_mask=torch.ones(1, len(one))).last_hidden_state[0] for one in ids]
        )
        for first in (0, padding + 1):  # RoBERTa counts from behind its padding id
            try:
                encoder.set_attn_implementation(PACKED)
                texts = {"input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)}
                packed = read_packed(encoder, texts, sorted(_TRIED), first)
                if packed.shape == alone.shape and (packed - alone).abs().max() <= _NEAR * alone.abs().max():
                    return first
            except (
                TypeError,
                ValueError,
                RuntimeError,
                IndexError,
            ):  # it takes no position ids, or does something else with them
                pass
            encoder.set_attn_implementation(before)
    return None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers asks for it: query, key, value (1, heads, tokens, width) -> (1, tokens, heads, width). What stands behind the last
    text sees nothing, and its zeros are seen by none."""
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more)
    heads, width = query.shape[1], query.shape[3]
    rows = [one.transpose(1, 2).reshape(-1, heads * width) for one in (query, key, value)]
    found = []
    for group in _layout(tuple(cu_seq_lens_q.diff().tolist())):
        padded = [group.padded(one[group.begin : group.end]) for one in rows]
        q, k, v = (one.view(group.texts, group.longest, heads, width).transpose(1, 2) for one in padded)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, dropout_p=dropout, scale=scaling)
        found.append(group.tokens(seen.transpose(1, 2).reshape(-1, heads * width)))
    found.append(rows[0].new_zeros(query.shape[2] - sum(len(one) for one in found), heads * width))
    return torch.cat(found).view(1, -1, heads, width), None


@dataclass(frozen=True)
class _Group:
    """Texts of like length. begin, end: their tokens among all. source: (texts * longest,) of each padded place its token, of padding some
    other one. places: (tokens,) the padded place of each token. mask: (texts, 1, 1, longest), None where nothing is padded."""

    begin: int
    end: int
    texts: int
    longest: int
    source: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor | None

    def padded(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.mask is None else _Pad.apply(rows, self.source, self.places)

    def tokens(self, padded: torch.Tensor) -> torch.Tensor:
        return padded if self.mask is None else _Cut.apply(padded, self.places)


@lru_cache(maxsize=16)  # asked for by each layer with the same lengths
def _layout(lengths: tuple[int, ...]) -> list[_Group]:
    found, text, begin = [], 0, 0
    for last, longest in groups(lengths, GROUP_TOKENS):
        among = torch.tensor(lengths[text:last])
        real = torch.arange(longest) < among[:, None]
        source = (real.flatten().cumsum(0) - 1).clamp_(min=0)
        end = begin + int(among.sum())
        mask = None if bool(real.all()) else real[:, None, None]
        found.append(_Group(begin, end, last - text, longest, source, real.flatten().nonzero()[:, 0], mask))
        text, begin = last, end
    return found


class _Pad(torch.autograd.Function):
    """rows (tokens, width) -> (places, width). What stands in padding is masked as a key and cut off as a query: it has no gradient."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, source: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        return rows.index_select(0, source)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


class _Cut(torch.autograd.Function):
    """padded (places, width) -> (tokens, width)."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.size = padded.shape[0]
        return padded.index_select(0, places)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.new_zeros(ctx.size, gradient.shape[1]).index_copy_(0, ctx.saved_tensors[0], gradient), None


def groups(lengths: Sequence[int], each: int = GROUP_TOKENS) -> list[tuple[int, int]]:
    """(end, longest) of the groups that `lengths`, ascending, are cut into, so that padded tokens and `each` a group are fewest.

    >>> groups([3, 3, 40, 41])
    [(2, 3), (4, 41)]
    """
    ends = [place for place in range(1, len(lengths) + 1) if place == len(lengths) or lengths[place] > lengths[place - 1]]
    best: list[tuple[int, int]] = []  # of the texts before each end: cost, and which end the last group begins at
    for index, end in enumerate(ends):
        options = [
            ((best[before][0] if before >= 0 else 0) + (end - (ends[before] if before >= 0 else 0)) * lengths[end - 1], before)
            for before in range(-1, index)
        ]
        cost, before = min(options)
        best.append((cost + each, before))
    found, index = [], len(ends) - 1
    while index >= 0:
        found.append((ends[index], lengths[ends[index] - 1]))
        index = best[index][1]
    return found[::-1]
