"""`LoraXSConfig(save_bases=True)`: A and B in the file, for bases that are elsewhere or moved, and for loaders without an SVD."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from app.cli import app
from loraxs_core import bases as bases_module
from loraxs_core.bases import bases
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError
from loraxs_core.export import export_lora
from loraxs_core.merging import merge
from loraxs_core.proof import fingerprint
from loraxs_core.store import AdapterStore, export_folder
from loraxs_core.tuner import LoraXSConfig, resign, saved_tensors, verify_adapter
from loraxs_core.tuner.folder import read_adapter, write_adapter
from tests.core.tuners import IDS, LOADERS, deltas, layers_of, llama

WEIGHTS = "adapter_model.safetensors"
X = torch.randn(3, 24, generator=torch.Generator().manual_seed(1))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 12))


def trained(base, folder, **settings):
    """A model of `base` with an adapter that does something, saved into `folder` with its bases."""
    config = LoraXSConfig(**{"r": 4, "init_weights": False, "save_bases": True, "target_modules": ["0", "1"]} | settings)
    model = get_peft_model(base, config)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def no_svd(monkeypatch):
    """A function after whose call nothing may ask for an SVD."""

    def refuse(*args, **kwargs):
        raise AssertionError("an SVD was asked for")

    def begin():
        monkeypatch.setattr(bases_module, "_computed", refuse)
        monkeypatch.setattr(bases_module, "_kept", refuse)

    return begin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sigma", ["input", "split"])
def test_what_is_loaded_is_what_was_saved_to_the_last_bit(tmp_path, no_svd, dtype, sigma):
    base = net().to(dtype)
    model = trained(copy.deepcopy(base), tmp_path / "one", sigma=sigma, rank_pattern={"1": 3})
    no_svd()
    with torch.no_grad():
        for layer in layers_of(model).values():
            layer.loraxs_R["default"].copy_(layer.loraxs_R["default"].float())  # R is stored in float32
    for is_trainable in (False, True):
        again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "one", is_trainable=is_trainable)
        assert all(torch.equal(one, deltas(model)[name]) for name, one in deltas(again).items())
        again.save_pretrained(tmp_path / "two")
        first, second = load_file(tmp_path / "one" / WEIGHTS), load_file(tmp_path / "two" / WEIGHTS)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert first["base_model.model.0.loraxs_A"].dtype == dtype


@pytest.mark.parametrize("loader", LOADERS)
def test_every_way_in_takes_the_bases_of_the_file(tiny_llama, tmp_path, loader, no_svd):
    model = trained(llama(tiny_llama), tmp_path, target_modules=["q_proj", "down_proj"])
    no_svd()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = LOADERS[loader](llama(tiny_llama), tmp_path)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert not [key for key in again.state_dict() if ".loraxs_A" in key or ".loraxs_B" in key]


def test_one_more_adapter_with_the_same_bases_shares_them(tmp_path, no_svd):
    model = trained(net(), tmp_path)
    no_svd()
    again = PeftModel.from_pretrained(net(), tmp_path)
    for name in ("second", "third"):
        again.load_adapter(tmp_path, name)
    assert all(len(layer.loraxs_A) == len(layer.loraxs_B) == 1 for layer in layers_of(again).values())
    mixed = again(X, adapter_names=["second", "default", "third"])
    torch.testing.assert_close(mixed, model(X))
    again.add_weighted_adapter(["second", "third"], [0.5, 0.5], "mean")
    again.set_adapter("mean")
    torch.testing.assert_close(again(X), model(X))
    for name in ("default", "second", "third", "mean"):
        again.delete_adapter(name)
    assert not any(len(layer.loraxs_A) for layer in layers_of(again).values())


def test_on_a_base_that_moved_the_update_is_exact_and_verify_says_what_that_means(tiny_llama, tmp_path):
    model = trained(llama(tiny_llama), tmp_path / "adapter", target_modules=["q_proj"])
    moved = llama(tiny_llama)
    moved.model.layers[1].self_attn.q_proj.weight.data *= 1.5
    moved.save_pretrained(tmp_path / "moved")
    with pytest.warns(UserWarning, match=r"1 of 2 base weights are not those .*layers\.1.* to the last bit .* never trained"):
        again = PeftModel.from_pretrained(copy.deepcopy(moved), tmp_path / "adapter")
    assert all(torch.equal(one, deltas(model)[name]) for name, one in deltas(again).items())

    checks = {check.name: check for check in verify_adapter(tmp_path / "adapter", moved)}
    assert [check.status for check in checks.values()] == ["same", "moved"]
    assert all(check.ok for check in checks.values())
    said = CliRunner().invoke(app, ["verify", str(tmp_path / "adapter"), "--model", str(tmp_path / "moved")])
    assert said.exit_code == 0
    assert "A and B are in the file" in " ".join(said.output.replace("│", " ").split())

    merge(tmp_path / "adapter", Checkpoint.open(tmp_path / "moved"), tmp_path / "merged")
    merged = Checkpoint.open(tmp_path / "merged")
    name = "model.layers.1.self_attn.q_proj"
    weight = next(one for one in merged.weights if one.name == name)
    wanted = moved.get_submodule(name).weight + deltas(model)[name]
    np.testing.assert_allclose(merged.read(weight), wanted.detach().numpy(), rtol=0, atol=1e-6)


def test_offloaded_and_meta_bases(tmp_path, no_svd):
    model = trained(net(), tmp_path)
    no_svd()
    offloaded = net()
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    assert offloaded[0].weight.is_meta
    with pytest.warns(
        UserWarning, match=r"2 of 2 base weights are not here .* was not checked; .* R, A and B are what was saved"
    ):
        again = PeftModel.from_pretrained(offloaded, tmp_path)
    assert torch.equal(again(X), model(X))

    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 12))
    with pytest.warns(UserWarning, match="not here"):
        again = PeftModel.from_pretrained(empty, tmp_path)
    assert all(torch.equal(one, deltas(model)[name]) for name, one in deltas(again).items())
    weights = {
        key.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias"): one
        for key, one in net().state_dict().items()
    }
    again.base_model.model.load_state_dict(weights, strict=False, assign=True)
    assert torch.equal(again(X), model(X))
    again.save_pretrained(tmp_path / "again")
    assert [check.status for check in verify_adapter(tmp_path / "again", net())] == ["same", "same"]


def test_bases_that_no_svd_of_the_weight_gives_are_held_saved_and_loaded_alike(tmp_path):
    model = get_peft_model(net(), LoraXSConfig(r=2, init_weights=False, save_bases=True, target_modules=["0"]))
    (layer,) = layers_of(model).values()
    generator = torch.Generator().manual_seed(3)
    A, B = torch.randn(2, 24, generator=generator), torch.randn(16, 2, generator=generator)
    layer.adopt("default", A, B)
    assert torch.equal(layer.frozen("default")[0], A)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(net(), tmp_path)
    (loaded,) = layers_of(again).values()
    assert all(torch.equal(*both) for both in zip(loaded.frozen("default"), (A, B), strict=True))
    assert torch.equal(again(X), model(X))
    assert [check.status for check in verify_adapter(tmp_path, net())] == ["same"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda held: held["base_model.model.1.loraxs_A"][0, 0].add_(1e-3),
            r"saved bases \(loraxs_A, loraxs_B\) are not what they were",
        ),
        (lambda held: held["base_model.model.1.loraxs_B"].fill_(torch.nan), "A and B of 1 hold NaN"),
        (lambda held: held.pop("base_model.model.1.loraxs_B"), "one of A and B of 1 and not the other"),
        (lambda held: [held.pop(f"base_model.model.1.loraxs_{side}") for side in "AB"], "not of 1; the adapter is incomplete"),
        (lambda held: held.update({"base_model.model.0.loraxs_A": torch.ones(3, 24)}), "do not fit its rank 4"),
    ],
)
def test_damaged_bases_are_refused(tmp_path, spoil, said):
    trained(net(), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    spoil(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match=said):
        PeftModel.from_pretrained(net(), tmp_path)
    with pytest.raises(AdapterError, match=said):
        read_adapter(tmp_path)


def test_an_edited_adapter_is_signed_and_other_bases_are_refused(tmp_path):
    model = trained(net(), tmp_path)
    half = {key: one / 2 if key.endswith("_R") else one for key, one in load_file(tmp_path / WEIGHTS).items()}
    wanted = {name: one / 2 for name, one in deltas(model).items()}
    again = PeftModel.from_pretrained(net(), tmp_path)
    from loraxs_core.tuner import sign, verifying

    set_peft_model_state_dict(again, sign({**half}, again))
    torch.testing.assert_close(deltas(again), wanted)
    with verifying("bases"):
        set_peft_model_state_dict(again, half)
        with pytest.raises(AdapterError, match="A and B of 1 are not those that R was trained with"):
            set_peft_model_state_dict(again, half | {"base_model.model.1.loraxs_A": torch.randn(4, 16)})
    save_file(half, tmp_path / WEIGHTS)
    for base in (None, net()):
        resign(tmp_path, base)
        torch.testing.assert_close(deltas(PeftModel.from_pretrained(net(), tmp_path)), wanted)


def test_the_default_is_small_and_the_size_is_foretold(tmp_path):
    for save_bases in (False, True):
        folder = tmp_path / str(save_bases)
        model = trained(net(), folder, save_bases=save_bases)
        modules = {name: (*layer.weight_shape, 4) for name, layer in layers_of(model).items()}
        told = saved_tensors(modules, model.peft_config["default"])
        found = {
            key: (tuple(one.shape), str(one.dtype).removeprefix("torch.")) for key, one in load_file(folder / WEIGHTS).items()
        }
        assert found == told
        assert any("loraxs_A" in key for key in found) == save_bases
        assert json.loads((folder / "adapter_config.json").read_text())["save_bases"] is save_bases


def test_a_configuration_read_from_a_file_starts_a_new_adapter_too(tmp_path):
    trained(net(), tmp_path)
    model = get_peft_model(net(), LoraXSConfig.from_pretrained(tmp_path))
    assert all(layer.get_delta_weight("default").abs().max() > 0 for layer in layers_of(model).values())
    known = {name: layer.frozen("default")[1] for name, layer in layers_of(model).items()}
    fresh = get_peft_model(net(), LoraXSConfig(r=4, target_modules=["0", "1"]))
    assert all(torch.equal(layer.frozen("default")[1], known[name]) for name, layer in layers_of(fresh).items())
    assert "base_model.model.0.loraxs_A" in get_peft_model_state_dict(model)


def test_folder_tools_and_the_store_keep_the_bases(tiny_llama, tmp_path, no_svd):
    model = trained(llama(tiny_llama), tmp_path / "adapter", target_modules=["q_proj"])
    no_svd()
    base = Checkpoint.open(tiny_llama)
    assert {check.status for check in verify_adapter(tmp_path / "adapter", base)} == {"same"}
    lora = PeftModel.from_pretrained(llama(tiny_llama), export_lora(tmp_path / "adapter", base, tmp_path / "lora"))
    for name, one in deltas(model).items():
        torch.testing.assert_close(lora.get_submodule(f"base_model.model.{name}").get_delta_weight("default"), one)
    store = AdapterStore.create(tmp_path / "store")
    store.put("one", tmp_path / "adapter")
    export_folder(store, "one", tmp_path / "back")
    back = load_file(tmp_path / "back" / WEIGHTS)
    kept = load_file(tmp_path / "adapter" / WEIGHTS)
    assert back.keys() == kept.keys()
    assert all(torch.equal(back[key], kept[key]) for key in kept)
    served = store.attach(llama(tiny_llama), resident=1)
    with torch.no_grad():
        torch.testing.assert_close(served(IDS, adapters=["one"] * len(IDS)).logits, model(IDS).logits)


def test_merging_takes_the_bases_of_the_file(tiny_llama, tmp_path, no_svd):
    model = trained(llama(tiny_llama), tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    no_svd()
    arguments = ["merge", str(tmp_path / "adapter"), "--model", str(tiny_llama), "--out", str(tmp_path / "merged")]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, (said.output, said.exception)
    merged = llama(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits)


def test_numbers_from_elsewhere_are_written_with_their_bases(tmp_path):
    base = net()
    config = LoraXSConfig(r=3, target_modules=["0"], save_bases=True)
    found = bases(base[0].weight.detach().numpy(), 3)
    write_adapter(tmp_path / "made", config, {"0": np.eye(3)}, {"0": found})
    assert {check.status for check in verify_adapter(tmp_path / "made", base)} == {"same"}
    A, B = read_adapter(tmp_path / "made").frozen["0"]
    assert fingerprint(found).S[0] == pytest.approx(float(torch.linalg.norm(A[0])), rel=1e-6)
    assert B.shape == (16, 3)
