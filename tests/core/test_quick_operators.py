"""Dropout and attention by the quicker way: the same in everything but which numbers chance leaves out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loraxs_core import quick_operators
from loraxs_core.quick_operators import quick_operators as quick


def test_dropout_leaves_out_as_many_as_asked_for_and_keeps_the_mean():
    torch.manual_seed(0)
    x, p = torch.ones(400, 1000), 0.1
    with quick():
        out = nn.Dropout(p)(x)
    left_out = (out == 0).double().mean()
    assert abs(left_out - p) < 4 * math.sqrt(p * (1 - p) / x.numel())
    assert out.unique().numel() == 2
    assert out.max() == pytest.approx(1 / (1 - round(p * 65536) / 65536), rel=1e-6)
    assert abs(out.mean() - 1) < 4 * math.sqrt(p / (1 - p) / x.numel())
    rows, columns = (out == 0).double().mean(1), (out == 0).double().mean(0)  # no place is preferred
    assert rows.std() == pytest.approx(math.sqrt(p * (1 - p) / 1000), rel=0.2)
    assert columns.std() == pytest.approx(math.sqrt(p * (1 - p) / 400), rel=0.2)


def test_what_is_left_out_follows_from_the_generator_and_differs_from_call_to_call():
    x = torch.ones(3, 7, 5)

    def twice():
        with quick():
            return F.dropout(x, 0.5), F.dropout(x, 0.5)

    torch.manual_seed(3)
    first, second = twice()
    torch.manual_seed(3)
    again, _ = twice()
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    third, _ = twice()
    torch.set_rng_state(state)
    assert torch.equal(third, twice()[0])


def test_the_gradient_passes_where_a_number_stayed():
    x = torch.randn(50, 20, requires_grad=True)
    with quick():
        out = F.dropout(x, 0.25)
    out.sum().backward()
    assert torch.equal(x.grad, (out / x).detach().nan_to_num()) or torch.allclose(x.grad, (out / x).detach())
    assert set((x.grad == 0).flatten().tolist()) == {True, False}


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-7])
def test_chances_that_16_bits_cannot_hold_are_pytorchs(p, monkeypatch):
    monkeypatch.setattr(quick_operators, "_kept", None)  # calling it would fail
    x = torch.ones(64)
    with quick():
        assert F.dropout(x, p).shape == x.shape
        assert torch.equal(F.dropout(x, 0.5, training=False), x)
        assert F.dropout(x.double(), 0.5).dtype == torch.float64
        assert torch.equal(nn.Dropout(0.3).eval()(x), x)


def _heads(batch=3, heads=2, length=5, width=4):
    return [torch.randn(batch, heads, length, width, requires_grad=True) for _ in range(3)]


def _masks(batch=3, length=5):
    lengths = torch.tensor([5, 2, 3])[:batch]
    return (torch.arange(length) < lengths[:, None])[:, None, None]


@pytest.mark.parametrize(
    "mask",
    [None, _masks(), _masks().expand(3, 1, 5, 5).clone(), torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()],
    ids=["none", "row", "square", "causal"],
)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_pytorchs_where_nothing_happens_to_be_left_out(mask, scale, monkeypatch):
    monkeypatch.setattr(quick_operators, "_kept", lambda shape, p: torch.ones(shape))
    torch.manual_seed(0)
    given = _heads()
    plain = F.scaled_dot_product_attention(*given, attn_mask=mask, scale=scale)
    with quick():
        found = F.scaled_dot_product_attention(*given, attn_mask=mask, dropout_p=0.1, scale=scale)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    towards = torch.randn_like(plain)
    for one, other in zip(torch.autograd.grad(found, given, towards), torch.autograd.grad(plain, given, towards), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_attention_drops_as_pytorchs_does_in_the_mean():
    torch.manual_seed(0)
    given = [one.detach() for one in _heads()]
    plain = F.scaled_dot_product_attention(*given, attn_mask=_masks())
    with quick():
        many = torch.stack([F.scaled_dot_product_attention(*given, attn_mask=_masks(), dropout_p=0.3) for _ in range(4000)])
    assert not torch.equal(many[0], many[1])
    error = many.std(0) / math.sqrt(len(many))
    assert ((many.mean(0) - plain).abs() < 5 * error + 1e-6).all()


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril()[None]},
        {"attn_mask": torch.zeros(3, 1, 1, 5)},
        {"attn_mask": torch.zeros(3, 1, 1, 5, dtype=torch.bool)},
        {"dropout_p": 0.0, "attn_mask": _masks()},
    ],
    ids=["causal", "three dimensions", "no yes or no", "nothing to see", "no dropout"],
)
def test_other_attention_is_left_to_pytorch(options, monkeypatch):
    monkeypatch.setattr(quick_operators, "_kept", None)  # calling it would fail
    given, options = _heads(), {"dropout_p": 0.1, **options}
    torch.manual_seed(1)
    plain = F.scaled_dot_product_attention(*given, **options)
    torch.manual_seed(1)
    with quick():
        assert torch.equal(F.scaled_dot_product_attention(*given, **options), plain)


def test_heads_that_share_keys_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(quick_operators, "_kept", None)
    query, (key, value, _) = torch.randn(3, 4, 5, 4), _heads()
    with quick():
        assert F.scaled_dot_product_attention(query, key, value, dropout_p=0.1, enable_gqa=True).shape == query.shape


def test_a_bert_that_trains_takes_it(monkeypatch):
    """transformers hands over the mask in a form that the quicker way takes."""
    from transformers import BertConfig, BertModel

    drawn = []
    real = quick_operators._kept
    monkeypatch.setattr(quick_operators, "_kept", lambda shape, p: drawn.append(tuple(shape)) or real(shape, p))
    tiny = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=40)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    with quick():
        BertModel(tiny).train()(input_ids=torch.ones(3, 6, dtype=torch.long), attention_mask=mask)
    assert drawn.count((3, 4, 6, 6)) == 2  # the attention of both layers
    assert drawn.count((3, 6, 32)) == 5  # the embeddings, and twice a layer
