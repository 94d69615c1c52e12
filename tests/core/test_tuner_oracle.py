"""LoRA-XS against two independent oracles: plain float64 NumPy, and PEFT's PSOFT in the setting that is LoRA-XS."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PsoftConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraxs_core.bases import SIGMAS, VECTORS
from loraxs_core.tuner import LoraXSConfig, LoraXSLayer


class OneLayer(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def linear(kind: str, out: int, into: int, dtype: torch.dtype, seed: int) -> OneLayer:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(into, out) if kind == "linear" else Conv1D(out, into)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)  # bases are those of the float32 rounding
    return OneLayer(layer).to(dtype)


def numpy_directions(weight: np.ndarray, r: int, vectors: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, S, V^T of the chosen triples by NumPy's own float64 SVD."""
    U, S, Vt = np.linalg.svd(weight, full_matrices=False)
    start = {"top": 0, "middle": (len(S) - r) // 2, "bottom": len(S) - r}[vectors]
    part = slice(start, start + r)
    return U[:, part], S[part], Vt[part]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["linear", "conv1d"]),
    out=st.integers(2, 20),
    into=st.integers(2, 20),
    share=st.floats(0, 1),
    alpha=st.floats(0.5, 64),
    sigma=st.sampled_from(SIGMAS),
    vectors=st.sampled_from([v for v in VECTORS if v != "random"]),
    seed=st.integers(0, 50),
)
def test_forward_and_gradients_equal_the_formula(kind, out, into, share, alpha, sigma, vectors, seed):
    """y = x W0^T + b + (alpha / r) x A^T R^T B^T, dL/dR = (alpha / r) (B^T g)^T (A x) summed, dL/dx likewise."""
    r = max(1, round(share * min(out, into)))
    base = linear(kind, out, into, torch.float64, seed)
    weight = base.layer.weight.detach().numpy()
    weight = weight if kind == "linear" else weight.T
    bias = base.layer.bias.detach().numpy()
    config = LoraXSConfig(r=r, alpha=alpha, target_modules=["layer"], sigma=sigma, vectors=vectors, init_weights=False)
    model = get_peft_model(base, config)
    layer = model.base_model.model.layer
    R = layer.loraxs_R["default"].data.double().numpy()
    # Signs are a convention; take them from the layer so that the oracle means the same R.
    U, S, Vt = numpy_directions(weight, r, vectors)
    A_layer, B_layer = (one.double().numpy() for one in layer.frozen("default"))
    s_in = {"input": S, "output": np.ones(r), "split": np.sqrt(S), "none": np.ones(r)}[sigma]
    s_out = {"input": np.ones(r), "output": S, "split": np.sqrt(S), "none": np.ones(r)}[sigma]
    signs = np.sign(np.sum(A_layer * Vt, axis=1))
    A, B = signs[:, None] * s_in[:, None] * Vt, U * s_out * signs
    np.testing.assert_allclose(A_layer, A, atol=1e-9)
    np.testing.assert_allclose(B_layer, B, atol=1e-9)

    rng = np.random.default_rng(seed)
    x, g = rng.standard_normal((3, into)), rng.standard_normal((3, out))
    inputs = torch.from_numpy(x).requires_grad_()
    result = model(inputs)
    result.backward(torch.from_numpy(g))
    scaling = alpha / r
    np.testing.assert_allclose(
        result.detach().numpy(), x @ weight.T + bias + scaling * x @ A.T @ R.T @ B.T, rtol=1e-6, atol=1e-5 * (1 + abs(scaling))
    )
    expected = scaling * (g @ B).T @ (x @ A.T)
    np.testing.assert_allclose(
        layer.loraxs_R["default"].grad.numpy(), expected, rtol=1e-4, atol=1e-5 * max(1, np.abs(expected).max())
    )
    expected = g @ weight + scaling * g @ B @ R @ A
    np.testing.assert_allclose(inputs.grad.numpy(), expected, rtol=1e-5, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_follows_the_formula(dtype):
    """Within the rounding of the base's precision; R and its gradient stay float32."""
    base = linear("linear", 24, 16, dtype, 3)
    weight = base.layer.weight.detach().double().numpy()
    model = get_peft_model(base, LoraXSConfig(r=4, target_modules=["layer"], init_weights=False))
    layer = model.base_model.model.layer
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = model(x)
    assert result.dtype == dtype
    delta = layer.get_delta_weight("default").double().detach().numpy()
    expected = x.double().numpy() @ (weight + delta).T + base.layer.bias.detach().double().numpy()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.06, torch.float16: 8e-3}[dtype]
    np.testing.assert_allclose(result.detach().double().numpy(), expected, atol=tolerance * np.abs(expected).max())
    result.sum().backward()
    assert layer.loraxs_R["default"].dtype == layer.loraxs_R["default"].grad.dtype == torch.float32


def test_embedding_equals_the_formula():
    table = nn.Embedding(30, 12).double()
    weight = table.weight.detach().numpy()
    model = get_peft_model(OneLayer(table), LoraXSConfig(r=5, alpha=10, target_modules=["layer"], init_weights=False))
    layer = model.base_model.model.layer
    U, S, Vt = np.linalg.svd(weight, full_matrices=False)
    A, B = (one.numpy() for one in layer.frozen("default"))
    signs = np.sign(np.sum(A * Vt[:5], axis=1))
    np.testing.assert_allclose(A, signs[:, None] * S[:5, None] * Vt[:5], atol=1e-10)
    np.testing.assert_allclose(B, signs * U[:, :5], atol=1e-10)
    R = layer.loraxs_R["default"].data.double().numpy()
    ids = torch.tensor([[0, 3, 29], [7, 7, 1]])
    np.testing.assert_allclose(model(ids).detach().numpy(), (weight + 2 * B @ R @ A)[ids.numpy()], rtol=1e-6, atol=1e-6)


def test_equals_psoft_in_its_lora_xs_setting(tiny_bert):
    """PSOFT without orthogonality and magnitudes is U S (R' - I) V^T: LoRA-XS with S on the output side and R = R' - I."""
    from transformers import AutoModel

    targets = ["query", "value", "attention.output.dense", "output.dense"]
    ours = get_peft_model(
        AutoModel.from_pretrained(tiny_bert), LoraXSConfig(r=6, sigma="output", target_modules=targets, init_weights=False)
    )
    theirs = get_peft_model(
        AutoModel.from_pretrained(tiny_bert),
        PsoftConfig(r=6, psoft_alpha=12, target_modules=targets, psoft_orth=False, psoft_mag_a=False, psoft_mag_b=False),
    )
    layers = {name: module for name, module in ours.base_model.model.named_modules() if isinstance(module, LoraXSLayer)}
    assert len(layers) == 8
    signs = {}
    for name, layer in layers.items():
        other = theirs.base_model.model.get_submodule(name)
        A, _ = layer.frozen("default")
        their_A, _ = other._get_psoft_ab_cache_buffers("default")
        signs[name] = torch.sign((A * their_A).sum(dim=1))
        R = signs[name][:, None] * layer.loraxs_R["default"].data * signs[name]
        other.psoft_R["default"].weight.data = torch.eye(6) + R
    ids = torch.randint(0, 64, (3, 11), generator=torch.Generator().manual_seed(0))
    ours.eval()
    theirs.eval()
    one, other = ours(ids).last_hidden_state, theirs(ids).last_hidden_state
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    with ours.disable_adapter():
        assert (one - ours(ids).last_hidden_state).abs().max() > 1e-3  # the adapter does something
    direction = torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
    (one * direction).sum().backward()
    (other * direction).sum().backward()
    for name, layer in layers.items():
        theirs_grad = theirs.base_model.model.get_submodule(name).psoft_R["default"].weight.grad
        expected = signs[name][:, None] * theirs_grad * signs[name]
        torch.testing.assert_close(layer.loraxs_R["default"].grad, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_autograd_keeps_only_the_r_dimensional_product():
    """What the adapter adds to what is kept for backward is r numbers a token, and nothing as long as the input is."""
    tokens, into, out, r = 64, 96, 80, 8
    base = linear("linear", out, into, torch.float32, 0).requires_grad_(False)
    model = get_peft_model(base, LoraXSConfig(r=r, target_modules=["layer"]))
    frozen = {one.data_ptr() for one in model.buffers()} | {one.data_ptr() for one in model.parameters()}
    kept: list[torch.Size] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in frozen:
            kept.append(tensor.shape)
        return tensor

    x = torch.randn(tokens, into, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(x)
    big = [shape for shape in kept if shape.numel() > r * r]
    assert big == [torch.Size([tokens, r])], kept
