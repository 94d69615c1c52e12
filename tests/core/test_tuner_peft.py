"""LoRA-XS with everything PEFT's users do, on small random models of several architectures."""

from __future__ import annotations

import copy
import importlib
import sys
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
)

import loraxs_core.tuner
from loraxs_core.errors import AdapterError, NonFiniteWeights
from loraxs_core.tuner import LoraXSConfig
from tests.core.tuners import IDS, layers_of, llama, trainable


@pytest.mark.parametrize(
    ("fixture", "kind", "modules"),
    [("tiny_bert", AutoModel, 8), ("tiny_llama", AutoModelForCausalLM, 14), ("tiny_gpt2", AutoModelForCausalLM, 8)],
)
def test_default_targets_saving_loading_and_merging(fixture, kind, modules, request, tmp_path):
    folder = request.getfixturevalue(fixture)
    model = get_peft_model(kind.from_pretrained(folder), LoraXSConfig(r=4, alpha=8, init_weights=False)).eval()
    assert len(layers_of(model)) == modules
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == modules * 16
    assert all(".loraxs_R." in name for name in trainable(model))
    with torch.no_grad():
        trained, plain = model(IDS)[0], kind.from_pretrained(folder).eval()(IDS)[0]
        assert (trained - plain).abs().max() > 1e-3
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(kind.from_pretrained(folder), tmp_path)
        torch.testing.assert_close(again(IDS)[0], trained, rtol=0, atol=0)
        native = kind.from_pretrained(folder).eval()
        native.load_adapter(tmp_path)
        torch.testing.assert_close(native(IDS)[0], trained, rtol=0, atol=0)
        merged = again.merge_and_unload(safe_merge=True)
        assert not layers_of(merged)
        torch.testing.assert_close(merged(IDS)[0], trained, atol=1e-5, rtol=1e-4)


def test_an_untrained_adapter_changes_next_to_nothing(tiny_llama):
    plain = llama(tiny_llama)(IDS).logits
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4))
    cores = torch.cat([layer.loraxs_R["default"].flatten() for layer in layers_of(model).values()])
    assert 0.5e-5 < cores.std() < 2e-5
    torch.testing.assert_close(model(IDS).logits, plain, atol=1e-4, rtol=0)


def test_ranks_and_scaling_per_module(tiny_llama):
    config = LoraXSConfig(
        r=4,
        alpha=8,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 12, "layers.0.mlp.down_proj": 3},
        alpha_pattern={"layers.1.self_attn.q_proj": 40},
    )
    found = {name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers_of(
        get_peft_model(llama(tiny_llama), config)
    ).items()}  # fmt: skip
    assert found == {
        "model.layers.0.self_attn.q_proj": (4, 2.0),
        "model.layers.0.mlp.down_proj": (12, 2.0),  # the first pattern that matches, as in PEFT's LoRA
        "model.layers.1.self_attn.q_proj": (4, 10.0),
        "model.layers.1.mlp.down_proj": (12, 2.0),
    }


def test_which_modules(tiny_llama):
    config = LoraXSConfig(r=2, target_modules=r".*_proj", exclude_modules=["v_proj"], layers_to_transform=None)
    assert len(layers_of(get_peft_model(llama(tiny_llama), config))) == 12
    config = LoraXSConfig(
        r=2,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        exclude_modules=["v_proj"],
        layers_to_transform=[1],
        layers_pattern="layers",
    )
    names = set(layers_of(get_peft_model(llama(tiny_llama), config)))
    assert names == {
        f"model.layers.1.{module}"
        for module in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    }


def test_impossible_settings_are_said_in_a_sentence(tiny_llama):
    for options, expected in (
        ({"r": 0}, "at least 1"),
        ({"r": 2.5}, "whole number"),
        ({"alpha": float("nan")}, "finite"),
        ({"dropout": 1.0}, "below 1"),
        ({"sigma": "left"}, "input, output, split, none"),
        ({"vectors": "best"}, "top, middle, bottom, random"),
        ({"save_dtype": "int8"}, "float32, bfloat16, float16"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern"),
        ({"layers_pattern": "layers"}, "layers_to_transform"),
    ):
        with pytest.raises(AdapterError, match=expected):
            LoraXSConfig(**options)
    with pytest.raises(AdapterError, match=r"k_proj is 16x32.*at most 16, not 17"):
        get_peft_model(llama(tiny_llama), LoraXSConfig(r=17, target_modules=["k_proj"]))
    with pytest.raises(AdapterError, match=r"is a LlamaMLP.*target_modules"):
        get_peft_model(llama(tiny_llama), LoraXSConfig(r=2, target_modules=["mlp"]))
    broken = llama(tiny_llama)
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(NonFiniteWeights, match=r"model\.layers\.1\.mlp\.up_proj"):
        get_peft_model(broken, LoraXSConfig(r=2, target_modules=["up_proj"]))


def test_disable_adapter_never_unfreezes_anything(tiny_llama):
    """PEFT 0.21.2 re-enables gradients of a frozen lora_A on the way out of disable_adapter; here A and B have none to enable."""
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, init_weights=False))
    before = trainable(model)
    changed = model(IDS).logits
    with model.disable_adapter():
        torch.testing.assert_close(model(IDS).logits, llama(tiny_llama)(IDS).logits, rtol=0, atol=0)
    assert trainable(model) == before
    torch.testing.assert_close(model(IDS).logits, changed, rtol=0, atol=0)
    frozen = [tensor for layer in layers_of(model).values() for tensor in layer.frozen("default")]
    copies = [tensor.clone() for tensor in frozen]
    optimizer = torch.optim.AdamW((parameter for parameter in model.parameters() if parameter.requires_grad), lr=0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert not any(tensor.requires_grad for tensor in frozen)
    assert all(torch.equal(tensor, copied) for tensor, copied in zip(frozen, copies, strict=True))


def test_adapters_of_one_weight_share_a_and_b(tiny_llama):
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, init_weights=False))
    model.add_adapter("small", LoraXSConfig(r=2, init_weights=False))
    model.add_adapter("large", LoraXSConfig(r=6, init_weights=False))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert len(layer.loraxs_A) == len(layer.loraxs_B) == 1
    shared = next(iter(layer.loraxs_A.values()))
    assert shared.shape == (6, 32)
    for adapter, r in (("small", 2), ("default", 4), ("large", 6)):
        A, B = layer.frozen(adapter)
        assert (A.shape, B.shape) == ((r, 32), (32, r))
        assert A.untyped_storage().data_ptr() == shared.untyped_storage().data_ptr()
    # the larger basis begins with the smaller one, so the first adapter means what it meant
    alone = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4)).base_model.model.model.layers[0].self_attn.q_proj
    torch.testing.assert_close(layer.frozen("default")[0], alone.frozen("default")[0])
    model.delete_adapter("large")
    assert set(layer.loraxs_R) == {"default", "small"}
    for adapter in ("default", "small"):
        model.delete_adapter(adapter)
    assert not list(layer.loraxs_A)
    assert not any("loraxs" in name for name, _ in layer.named_parameters())


def test_switching_adding_and_deleting_adapters(tiny_llama):
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, init_weights=False))
    first = model(IDS).logits
    model.add_adapter("other", LoraXSConfig(r=4, sigma="split", target_modules=["up_proj"], init_weights=False))
    torch.testing.assert_close(model(IDS).logits, first, rtol=0, atol=0)  # adding does not switch
    model.set_adapter("other")
    assert all(".other" in name for name in trainable(model))
    second = model(IDS).logits
    assert (first - second).abs().max() > 1e-3
    model.base_model.set_adapter(["default", "other"])
    both = model(IDS).logits
    assert min((both - first).abs().max(), (both - second).abs().max()) > 1e-3
    model.delete_adapter("default")
    model.set_adapter("other")
    torch.testing.assert_close(model(IDS).logits, second, rtol=0, atol=0)


def test_a_weighted_sum_of_adapters_is_exact(tiny_llama):
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, alpha=8, init_weights=False))
    model.add_adapter("b", LoraXSConfig(r=4, alpha=2, init_weights=False, target_modules=["q_proj", "down_proj"]))
    model.base_model.add_weighted_adapter(["default", "b"], [0.25, -1.5], "sum")
    for layer in layers_of(model).values():
        expected = 0.25 * layer.get_delta_weight("default")
        if "b" in layer.loraxs_R:
            expected = expected - 1.5 * layer.get_delta_weight("b")
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected)
    model.add_adapter("unlike", LoraXSConfig(r=4, vectors="bottom"))
    with pytest.raises(AdapterError, match=r"do not share their bases in model\.layers\.0"):
        model.base_model.add_weighted_adapter(["default", "unlike"], [1, 1], "no")
    assert "no" not in model.peft_config
    with pytest.raises(AdapterError, match="no adapter named 'nobody'"):
        model.base_model.add_weighted_adapter(["nobody"], [1], "no")
    with pytest.raises(AdapterError, match="as many weights"):
        model.base_model.add_weighted_adapter(["default"], [1, 2], "no")
    with pytest.raises(AdapterError, match="'sum' already"):
        model.base_model.add_weighted_adapter(["default"], [1], "sum")


def test_every_sample_through_its_own_adapter(tiny_llama):
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, init_weights=False))
    model.add_adapter("other", LoraXSConfig(r=6, target_modules=["q_proj", "embed_tokens"], init_weights=False))
    model.eval()
    names = ["other", "__base__", "default", "other"]
    with torch.no_grad():
        mixed = model(IDS, adapter_names=names).logits
        for row, name in enumerate(names):
            if name == "__base__":
                with model.disable_adapter():
                    alone = model(IDS[row : row + 1]).logits
            else:
                model.set_adapter(name)
                alone = model(IDS[row : row + 1]).logits
            torch.testing.assert_close(mixed[row : row + 1], alone, atol=1e-5, rtol=1e-4)
        generated = model.generate(IDS, adapter_names=names, max_new_tokens=5, do_sample=False, pad_token_id=0)
        beams = model.generate(IDS, adapter_names=names, max_new_tokens=5, do_sample=False, num_beams=2, pad_token_id=0)
        for row, name in ((0, "other"), (2, "default")):
            model.set_adapter(name)
            alone = model.generate(IDS[row : row + 1], max_new_tokens=5, do_sample=False, pad_token_id=0)
            assert torch.equal(generated[row, : alone.shape[1]], alone[0])
            alone = model.generate(IDS[row : row + 1], max_new_tokens=5, do_sample=False, num_beams=2, pad_token_id=0)
            assert torch.equal(beams[row, : alone.shape[1]], alone[0])
    with pytest.raises(ValueError, match="non-existing adapter"):
        model(IDS, adapter_names=["nobody"] * 4)
    with pytest.raises(ValueError, match="same as the number of inputs"):
        model(IDS, adapter_names=["default"])
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        model(IDS, adapter_names=names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_and_unmerging(tiny_gpt2, dtype):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=dtype).eval(), LoraXSConfig(r=4, init_weights=False)
    )
    originals = {name: layer.get_base_layer().weight.clone() for name, layer in layers_of(model).items()}
    trained = model(IDS).logits
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(IDS).logits, trained, atol=tolerance, rtol=tolerance)
    for name, layer in layers_of(model).items():
        assert layer.merged
        delta = layer.get_base_layer().weight.float() - originals[name].float()
        torch.testing.assert_close(
            delta, layer.get_delta_weight("default"), atol=1e-6 if dtype == torch.float32 else 4e-3, rtol=0.1
        )
    with pytest.raises(AdapterError, match="unmerge"):
        model.add_adapter("late", LoraXSConfig(r=20))
    model.unmerge_adapter()
    for name, layer in layers_of(model).items():
        torch.testing.assert_close(
            layer.get_base_layer().weight, originals[name], atol=1e-6 if dtype == torch.float32 else 4e-3, rtol=0
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.unmerge_adapter()
    assert any("Already unmerged" in str(one.message) for one in caught)


def test_safe_merge_refuses_what_is_not_finite(tiny_llama):
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4))
    layer = next(iter(layers_of(model).values()))
    layer.loraxs_R["default"].data[0, 0] = float("nan")
    before = layer.get_base_layer().weight.clone()
    with pytest.raises(ValueError, match=r"layers\.0"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, before)


def test_a_saved_file_made_while_merged_is_the_same(tiny_llama, tmp_path):
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, init_weights=False))
    model.save_pretrained(tmp_path / "plain")
    model.merge_adapter()
    model.save_pretrained(tmp_path / "merged")
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("plain", "merged"))
    assert one == other


def test_transformers_own_add_adapter(tiny_llama, tmp_path):
    model = llama(tiny_llama)
    model.add_adapter(LoraXSConfig(r=4, init_weights=False, target_modules=["q_proj", "down_proj"]))
    trained = model(IDS).logits
    assert all("loraxs_R" in name for name in trainable(model))
    model.save_pretrained(tmp_path)
    again = llama(tiny_llama)
    again.load_adapter(tmp_path, adapter_name="mine", is_trainable=True)
    assert all("loraxs_R.mine" in name for name in trainable(again))
    torch.testing.assert_close(again(IDS).logits, trained, rtol=0, atol=0)
    again.disable_adapters()
    torch.testing.assert_close(again(IDS).logits, llama(tiny_llama)(IDS).logits, rtol=0, atol=0)
    again.enable_adapters()
    again.delete_adapter("mine")
    torch.testing.assert_close(again(IDS).logits, llama(tiny_llama)(IDS).logits, rtol=0, atol=0)


def test_on_the_meta_device(tiny_llama):
    from transformers import AutoConfig

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_llama))
    model = get_peft_model(base, LoraXSConfig(r=4))
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 14 * 16
    layer = layers_of(model)["model.layers.0.mlp.down_proj"]
    A, B = layer.frozen("default")
    assert (A.shape, B.shape, A.device.type) == ((4, 48), (32, 4), "meta")
    assert model(torch.zeros(2, 3, dtype=torch.long, device="meta")).logits.shape == (2, 3, 64)


def test_copies_and_half_precision_moves(tiny_llama):
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, init_weights=False))
    expected = model(IDS).logits
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(IDS).logits, expected, rtol=0, atol=0)
    next(iter(layers_of(twin).values())).loraxs_R["default"].data += 1
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=0)


def test_importing_again_is_harmless(tiny_llama, tmp_path):
    """Streamlit drops and re-imports modules; PEFT would refuse a method registered twice."""
    get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, init_weights=False)).save_pretrained(tmp_path)
    kept = {name: module for name, module in sys.modules.items() if name.startswith("loraxs_core")}
    try:
        importlib.reload(loraxs_core.tuner)
        for name in kept:
            sys.modules.pop(name)
        again = importlib.import_module("loraxs_core.tuner")
        assert again.LoraXSConfig is not LoraXSConfig
        model = PeftModel.from_pretrained(llama(tiny_llama), tmp_path)
        assert isinstance(model.peft_config["default"], again.LoraXSConfig)
    finally:
        sys.modules.update(kept)
        loraxs_core.tuner._register()
    assert isinstance(PeftModel.from_pretrained(llama(tiny_llama), tmp_path).peft_config["default"], LoraXSConfig)


class Custom(nn.Module):
    """Not a transformers model: no config, odd module names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.loraxs_like = nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.loraxs_like(x))


def test_any_torch_module(tmp_path):
    model = get_peft_model(
        Custom(), LoraXSConfig(r=3, target_modules=["loraxs_like"], modules_to_save=["head"], init_weights=False)
    )
    x = torch.randn(4, 6)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(Custom(), tmp_path)(x), model(x), rtol=0, atol=0)
