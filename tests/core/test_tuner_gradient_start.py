"""LoRA-SB's start: where a full fine-tune's first step leads, at rank r; saved and loaded; refused where it cannot be."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from loraxs_core.errors import AdapterError
from loraxs_core.tuner import LoraXSConfig
from loraxs_core.tuner.gradient_start import start_from_gradients

STEP = 1e-3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.unused = nn.Linear(12, 20), nn.Linear(20, 3), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.second(self.drop(torch.tanh(self.first(x))))


def data():
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 12, generator=random), torch.randint(0, 3, (16,), generator=random)) for _ in range(3)]


def losses(model):
    return lambda: (nn.functional.cross_entropy(model(x), y) for x, y in data())


def adapted(r=20, **options):
    base = Net().requires_grad_(False)
    return get_peft_model(base, LoraXSConfig(r=min(r, 12), target_modules=["first"], save_bases=True, **options))


def full_gradient():
    net = Net().eval()
    sum(nn.functional.cross_entropy(net(x), y) for x, y in data()).backward()
    return net.first.weight.grad


@pytest.mark.parametrize("alpha", [None, 24.0])
def test_the_adapter_begins_at_the_first_step_of_a_full_fine_tune(alpha):
    model = adapted(alpha=alpha)
    start_from_gradients(model, losses(model), STEP)
    layer = model.base_model.model.first
    update = -STEP * full_gradient().sign()
    torch.testing.assert_close(layer.get_delta_weight("default"), update, rtol=1e-4, atol=1e-8)  # of full rank here
    net = Net()
    optimizer = torch.optim.AdamW([net.first.weight], lr=STEP, weight_decay=0.0)
    net.first.weight.grad = full_gradient()
    optimizer.step()
    torch.testing.assert_close(
        layer.get_base_layer().weight + layer.get_delta_weight("default"), net.first.weight, rtol=1e-3, atol=1e-6
    )


def test_at_a_smaller_rank_it_is_the_best_approximation_and_lowers_the_loss():
    model = adapted(r=3)
    with torch.no_grad():
        model.eval()
        before = sum(float(loss) for loss in losses(model)())
    start_from_gradients(model, losses(model), STEP)
    U, S, Vh = torch.linalg.svd(-STEP * full_gradient().sign())
    best = U[:, :3] @ torch.diag(S[:3]) @ Vh[:3]
    layer = model.base_model.model.first
    torch.testing.assert_close(layer.get_delta_weight("default"), best, rtol=1e-3, atol=1e-7)
    A, B = layer.frozen("default")
    torch.testing.assert_close(A @ A.T, torch.eye(3), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(B.T @ B, torch.eye(3), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert sum(float(loss) for loss in losses(model)()) < before


def test_nothing_else_is_left_behind():
    model = adapted(r=3)
    base = {name: value.clone() for name, value in model.named_parameters() if "loraxs" not in name}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    model.train()
    start_from_gradients(model, losses(model), STEP)
    assert model.training
    assert {name for name, value in model.named_parameters() if value.requires_grad} == trained
    assert all(value.grad is None for value in model.parameters())
    assert all(torch.equal(value, base[name]) for name, value in model.named_parameters() if name in base)
    assert not model.base_model.model.first.get_base_layer().weight._post_accumulate_grad_hooks


def test_it_is_saved_and_loaded_with_its_bases(tmp_path):
    model = adapted(r=3).eval()
    start_from_gradients(model, losses(model), STEP)
    layer = model.base_model.model.first
    layer.loraxs_R["default"].data += 0.1
    x = data()[0][0]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Net().requires_grad_(False), tmp_path).eval()
    assert torch.equal(loaded(x), model(x))
    assert torch.equal(loaded.base_model.model.first.frozen("default")[0], layer.frozen("default")[0])


def test_what_cannot_start_so_is_refused_in_a_sentence():
    plain = get_peft_model(Net().requires_grad_(False), LoraXSConfig(r=3, target_modules=["first"]))
    with pytest.raises(AdapterError, match=r"needs LoraXSConfig\(save_bases=True\)"):
        start_from_gradients(plain, losses(plain), STEP)
    unreached = get_peft_model(Net().requires_grad_(False), LoraXSConfig(r=3, target_modules=["unused"], save_bases=True))
    with pytest.raises((AdapterError, RuntimeError), match=r"does not reach base_model\.model\.unused"):
        start_from_gradients(unreached, lambda: (loss.requires_grad_() for loss in losses(unreached)()), STEP)
    with pytest.raises(AdapterError, match="no LoRA-XS adapter"):
        start_from_gradients(Net(), losses(plain), STEP)
    broken = adapted(r=3)
    with pytest.raises(AdapterError, match="is not finite"):
        start_from_gradients(broken, lambda: (loss * float("nan") for loss in losses(broken)()), STEP)


def test_where_the_start_is_known_to_follow_no_svd_of_the_weight_is_computed(monkeypatch, tmp_path):
    usual = adapted(r=3)
    start_from_gradients(usual, losses(usual), STEP)
    config = LoraXSConfig(r=3, target_modules=["first"], save_bases=True)
    config.start_follows = True
    monkeypatch.setattr("loraxs_core.tuner.layer.bases", None)  # calling it would fail
    model = get_peft_model(Net().requires_grad_(False), config).train().eval()
    start_from_gradients(model, losses(model), STEP)
    one, other = model.base_model.model.first, usual.base_model.model.first
    assert torch.equal(one.get_delta_weight("default"), other.get_delta_weight("default"))
    assert {name for name, _ in model.named_buffers()} == {name for name, _ in usual.named_buffers()}
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Net().requires_grad_(False), tmp_path).eval()
    x = data()[0][0]
    assert torch.equal(loaded(x), usual.eval()(x))
    assert not loaded.peft_config["default"].start_follows


def test_a_start_that_never_came_leaves_the_weights_own_vectors(tmp_path):
    config = LoraXSConfig(r=3, target_modules=["first"], save_bases=True)
    config.start_follows = True
    model = get_peft_model(Net().requires_grad_(False), config)
    model.save_pretrained(tmp_path)
    A, _ = model.base_model.model.first.frozen("default")
    assert torch.equal(A, adapted(r=3).base_model.model.first.frozen("default")[0])
