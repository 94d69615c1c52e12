"""Linear layers through oneDNN give what PyTorch's own give, to rounding, in every way that a layer is used."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loraxs_core import linear_products
from loraxs_core import quick_operators as quick_operators_module
from loraxs_core.linear_products import quick_linear, through_onednn
from loraxs_core.quick_operators import quick_operators

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


@pytest.fixture(autouse=True)
def slow_mkl(monkeypatch):
    for module in (linear_products, quick_operators_module):
        monkeypatch.setattr(module, "mkl_is_slow", lambda: True)


def _gradients(layer, x):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("shape", [(7, 48), (3, 5, 48), (48,)], ids=str)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_same_outputs_and_gradients(shape, trained, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 33, bias=bias).requires_grad_(trained), torch.randn(shape)
    plain = _gradients(layer, x)
    with quick_operators():
        quick = _gradients(layer, x)
    for one, other in zip(plain, quick, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_product_is_onednns(monkeypatch):
    seen = []
    real = linear_products._product
    monkeypatch.setattr(linear_products, "_product", lambda *given: seen.append(1) or real(*given))
    with quick_operators():
        F.linear(torch.randn(2, 3), torch.randn(4, 3))
    F.linear(torch.randn(2, 3), torch.randn(4, 3))
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_and_empty_batches_are_left_alone(dtype, monkeypatch):
    monkeypatch.setattr(linear_products, "_product", None)  # calling it would fail
    with quick_operators():
        assert F.linear(torch.randn(2, 3, dtype=dtype), torch.randn(4, 3, dtype=dtype)).dtype == dtype
        assert F.linear(torch.randn(0, 3), torch.randn(4, 3)).shape == (0, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.linear(torch.randn(2, 3), torch.randn(4, 3)).dtype == torch.bfloat16


def test_a_frozen_weight_keeps_no_input():
    weight = torch.randn(4, 3)
    with quick_operators():
        out = F.linear(torch.randn(2, 3, requires_grad=True), weight)
    kept = [value for value in out.grad_fn.saved_tensors if value is not None]
    assert [value.data_ptr() for value in kept] == [weight.data_ptr()]


@pytest.mark.parametrize("trained", [False, True])
def test_onednn_is_given_no_slices_which_it_takes_a_thousand_times_as_long_for(trained, monkeypatch):
    given = []

    class Op:
        _linear_pointwise = staticmethod(lambda *args: given.append(args[:2]) or real(*args))

    real = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops, "mkldnn", Op)
    whole = torch.randn(16, 48)
    cut = whole[:, :20].requires_grad_(trained)
    x, plain = (torch.randn(6, 40)[:, ::2].requires_grad_() for _ in range(2))
    with quick_operators():
        out = F.linear(x, cut)
        out.sum().backward()
    assert len(given) == 2 + trained
    assert all(one.is_contiguous() or one.t().is_contiguous() for pair in given for one in pair)
    with torch.no_grad():
        plain.copy_(x)
    expected = F.linear(plain, cut.detach())
    expected.sum().backward()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "taken"), [(8, 0), (256, 1)])
def test_a_product_with_a_narrow_matrix_is_onednns_for_many_rows(rows, taken, monkeypatch):
    seen = []
    real = linear_products._product
    monkeypatch.setattr(linear_products, "_product", lambda *given: seen.append(1) or real(*given))
    x, weight = torch.randn(2, rows // 2, 48), torch.randn(16, 48)
    torch.testing.assert_close(quick_linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)
    assert len(seen) == taken


def test_what_comes_out_may_be_added_to_where_it_lies():
    """As PEFT's AdaLoRA does with what the layer below it gives."""
    x, weight = torch.randn(2, 3, 8, requires_grad=True), torch.randn(5, 8)
    found = through_onednn(x, weight)
    found += 1
    found.sum().backward()
    assert found.shape == (2, 3, 5)
    torch.testing.assert_close(x.grad, weight.sum(0).expand_as(x))
