"""The loss of a causal model: as transformers computes it over all logits, or fused with the output matrix, which never holds them.

A fused loss is a function of the last hidden states and the output matrix that forgets the logits. Its buffers are those of the
libraries' own host code; the Triton kernels between them take no memory, so they are left out. Only memory can be learned here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from analyzers.memory.versions import Software

# trl/kernels/chunked_logprob.py and trl/trainer/utils.py of TRL 1.16: a tile of logits is this many tokens by this many words.
TRL_TOKENS, TRL_WORDS = 4096, 32768


def fuse_loss(model: nn.Module, name: str, half: torch.dtype | None, on_backward: Callable[[], None]) -> None:
    """Lets `model`, a causal model or PEFT's wrapper of one, compute its loss as ``trl``, ``liger`` or ``cut-cross-entropy`` does.

    half: autocast's dtype. on_backward: called in the backward pass when the gradient of the hidden states is there. Raises AttributeError for a model
    without an output matrix over hidden states.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    function, inner.forward_over_all_logits = FUSED[name], inner.forward

    def forward(*args, labels, **kwargs):
        outputs = inner.base_model(*args, **kwargs)
        hidden, head = outputs.last_hidden_state, inner.get_output_embeddings()
        if hidden.requires_grad:
            hidden.register_hook(lambda _gradient: on_backward())
        if half is not None:  # under autocast the products are in the low precision
            hidden = hidden.to(half)
        loss = function(hidden, head.weight, labels)
        return _Output(loss)

    inner.forward = forward


@contextmanager
def over_all_logits(model: nn.Module) -> Iterator[None]:
    """Undoes `fuse_loss` for a while: who asks for logits gets them, and the loss over them."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    fused = inner.forward
    inner.forward = getattr(inner, "forward_over_all_logits", fused)
    try:
        yield
    finally:
        inner.forward = fused


class _Output:
    """What the training loop reads of a model's outputs."""

    def __init__(self, loss: torch.Tensor):
        self.loss = loss


def use_old_loss(model: nn.Module, software: Software) -> None:
    """The causal models' loss over all logits as older versions of transformers computed it: with a shifted copy of the logits in
    fp32 (until 4.50), and until 4.44 with the logits of the outputs themselves in fp32."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = inner.forward

    def with_old_loss(*args, labels, **kwargs):
        outputs = forward(*args, **kwargs)
        logits = outputs.logits.float()
        if software.float_logits:
            outputs.logits = logits
        shifted = logits[..., :-1, :].contiguous()
        outputs.loss = nn.functional.cross_entropy(shifted.view(-1, shifted.shape[-1]), labels[..., 1:].contiguous().view(-1))
        return outputs

    inner.forward = with_old_loss


def _trl(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """TRL's fused output matrix: the hidden states whose next word counts are copied out, all of them here."""
    kept = hidden[:, :-1].reshape(-1, hidden.shape[-1]).clone()
    each = _TrlLogProbabilities.apply(kept, weight, labels[:, 1:].reshape(-1).clone())
    scattered = torch.zeros_like(each) + each
    return -scattered.sum()


def _liger(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _LigerCrossEntropy.apply(hidden.reshape(-1, hidden.shape[-1]), weight, nn.functional.pad(labels, (0, 1))[..., 1:])


def _cut(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _CutCrossEntropy.apply(hidden.reshape(-1, hidden.shape[-1]), weight)


FUSED: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "trl": _trl,
    "liger": _liger,
    "cut-cross-entropy": _cut,
}


class _TrlLogProbabilities(torch.autograd.Function):
    """`ChunkedLogProbFunction`: statistics for each token, one tile of logits at a time, computed again in the backward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        count = hidden.shape[0]
        statistics = [hidden.new_zeros(count, dtype=torch.float32) for _ in range(7)]
        _tiles(hidden, weight)
        probability, log_z, entropy = (statistics[0] + 0 for _ in range(3))
        del statistics
        ctx.save_for_backward(hidden, weight, targets, log_z, entropy)
        return probability

    @staticmethod
    def backward(ctx, _gradient):
        hidden, weight, *_ = ctx.saved_tensors
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        of_hidden = torch.zeros_like(hidden, dtype=torch.float32) if for_hidden else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        _tiles(hidden, weight)
        return (
            of_hidden.to(hidden.dtype) if for_hidden else None,
            of_weight.to(weight.dtype) if for_weight else None,
            None,
        )


def _tiles(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    dtype = hidden.dtype
    words = min(TRL_WORDS, weight.shape[0])
    tile = hidden.new_empty((min(hidden.shape[0], TRL_TOKENS), TRL_WORDS), dtype=dtype)
    tokens = hidden[:TRL_TOKENS].to(dtype)
    part = weight[:words].to(dtype)
    del tile, tokens, part


class _LigerCrossEntropy(torch.autograd.Function):
    """`fused_linear_cross_entropy_forward` of liger-kernel 0.8: gradients are made in the forward pass, some tokens at a time."""

    @staticmethod
    def forward(ctx, hidden, weight, labels):
        tokens, width = hidden.shape
        chunk = -(-tokens // -(-weight.shape[0] // width))
        chunk = min(tokens, 1 << (chunk - 1).bit_length())
        of_hidden = torch.zeros_like(hidden)
        of_weight = torch.zeros_like(weight) if weight.requires_grad else None
        losses = hidden.new_zeros(tokens, dtype=torch.float32)
        logits = hidden[:chunk] @ weight.t()
        if of_weight is not None:
            product = logits.t() @ hidden[:chunk]
            del product
        del logits
        ctx.save_for_backward(of_hidden, of_weight)
        return losses.sum()

    @staticmethod
    def backward(ctx, _gradient):
        return *ctx.saved_tensors, None


class _CutCrossEntropy(torch.autograd.Function):
    """cut-cross-entropy: nothing but a number for each token, and the gradients."""

    @staticmethod
    def forward(ctx, hidden, weight):
        kept = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        averages = hidden.new_zeros(weight.shape[0], dtype=torch.float32)
        ctx.save_for_backward(hidden, weight, kept, averages)
        return (kept + 0).sum()

    @staticmethod
    def backward(ctx, _gradient):
        hidden, weight, *_ = ctx.saved_tensors
        of_hidden = torch.zeros_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=hidden.dtype) if ctx.needs_input_grad[1] else None
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype)
