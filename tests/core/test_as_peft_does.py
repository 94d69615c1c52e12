"""What PEFT's users do with LoRA by its helpers and switches, done with LoRA-XS."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting, rescale_adapter_scale
from peft.utils import hotswap
from peft.utils.merge_utils import dare_linear, magnitude_prune, ties

from loraxs_core.errors import AdapterError
from loraxs_core.tuner import LoraXSConfig
from tests.core.named_nets import Net, X, adapted
from tests.core.tuners import IDS, deltas, layers_of, llama

TARGETS = ["q_proj", "down_proj"]


def model_of(tiny_llama, *, seed=0, dtype=torch.float32, autocast=True, **options):
    torch.manual_seed(seed)
    config = LoraXSConfig(**({"r": 4, "alpha": 8, "target_modules": TARGETS, "init_weights": False} | options))
    return get_peft_model(llama(tiny_llama, dtype=dtype), config, autocast_adapter_dtype=autocast).eval()


def cores_of(model, name="default") -> list[torch.Tensor]:
    return [layer.loraxs_R[name] for layer in layers_of(model).values()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_autocast_r_has_the_precision_of_the_base(tiny_llama, tmp_path, dtype):
    model = model_of(tiny_llama, dtype=dtype, autocast=False)
    assert {one.dtype for one in cores_of(model)} == {dtype}
    assert all(one.requires_grad for one in cores_of(model))
    if dtype == torch.bfloat16:
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert all(one.grad.dtype == dtype for one in cores_of(model))
    model.save_pretrained(tmp_path)
    for autocast in (True, False):
        again = PeftModel.from_pretrained(llama(tiny_llama, dtype=dtype), tmp_path, autocast_adapter_dtype=autocast)
        again.load_adapter(tmp_path, "second", autocast_adapter_dtype=autocast)
        for name in ("default", "second"):
            assert {one.dtype for one in cores_of(again, name)} == {torch.float32 if autocast else dtype}
            assert all(
                torch.equal(one.float(), other.float())
                for one, other in zip(cores_of(again, name), cores_of(model), strict=True)
            )


def test_r_in_sixteen_bits_on_a_float32_base(tiny_llama, tmp_path):
    model_of(tiny_llama, save_dtype="bfloat16").save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(tiny_llama), tmp_path, autocast_adapter_dtype=False)
    assert {one.dtype for one in cores_of(again)} == {torch.bfloat16}
    exact = PeftModel.from_pretrained(llama(tiny_llama), tmp_path)
    torch.testing.assert_close(again(IDS).logits, exact(IDS).logits, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kind", ["linear", "cat", "svd"])
def test_a_weighted_sum_as_peft_spells_it(tiny_llama, kind):
    model = model_of(tiny_llama)
    model.add_adapter("other", LoraXSConfig(r=4, target_modules=TARGETS, init_weights=False))
    model.add_weighted_adapter(adapters=["default", "other"], weights=[0.5, -2.0], adapter_name="sum", combination_type=kind)
    for layer in layers_of(model).values():
        wanted = 0.5 * layer.get_delta_weight("default") - 2.0 * layer.get_delta_weight("other")
        torch.testing.assert_close(layer.get_delta_weight("sum"), wanted, atol=1e-6, rtol=1e-5)


def test_a_sum_of_different_ranks_has_the_largest_and_is_exact(tiny_llama, tmp_path):
    model = model_of(tiny_llama, alpha_pattern={"down_proj": 3})
    model.add_adapter("large", LoraXSConfig(r=5, rank_pattern={"down_proj": 2}, target_modules=TARGETS, init_weights=False))
    for adapters in (["default", "large"], ["large", "default"]):
        name = adapters[0] + " first"
        model.add_weighted_adapter(adapters, [0.5, -2.0], name)
        for where, layer in layers_of(model).items():
            assert layer.r[name] == (5 if "q_proj" in where else 4)
            wanted = 0.5 * layer.get_delta_weight(adapters[0]) - 2.0 * layer.get_delta_weight(adapters[1])
            torch.testing.assert_close(layer.get_delta_weight(name), wanted, atol=1e-6, rtol=1e-5)
    model.set_adapter("default first")
    model.save_pretrained(tmp_path, selected_adapters=["default first"])
    again = PeftModel.from_pretrained(llama(tiny_llama), tmp_path / "default first")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "function"), [("ties", ties), ("dare_linear", dare_linear), ("magnitude_prune", magnitude_prune)]
)
def test_the_other_ways_to_combine_are_those_of_peft_on_r(tiny_llama, kind, function):
    model = model_of(tiny_llama)
    model.add_adapter("other", LoraXSConfig(r=4, target_modules=TARGETS, init_weights=False))
    torch.manual_seed(3)
    model.add_weighted_adapter(["default", "other"], [1.0, 0.5], "new", combination_type=kind, density=0.5)
    layer = layers_of(model)["model.layers.0.self_attn.q_proj"]
    torch.manual_seed(3)
    for first in layers_of(model).values():  # dare draws at random, layer after layer
        scaled = [2.0 * first.loraxs_R["default"].data, first.loraxs_R["other"].data]
        more = ("total",) if kind == "ties" else ()
        wanted = function(scaled, torch.tensor([1.0, 0.5]), 0.5, *more)
        if kind == "dare_linear":  # drawn after the new adapter's own R
            break
        if first is layer:
            torch.testing.assert_close(layer.loraxs_R["new"].data * layer.scaling["new"], wanted)
    assert all(torch.isfinite(one).all() for one in cores_of(model, "new"))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"combination_type": "dare_ties_svd"}, "combination_type must be one of linear"),
        ({"combination_type": "ties"}, "needs density"),
        ({"combination_type": "ties", "density": 1.7}, "density must be above 0 and at most 1, .* not 1.7"),
        (
            {"combination_type": "ties", "density": 0.5, "majority_sign_method": "most"},
            "majority_sign_method must be total or freq",
        ),
        ({"combination_type": "svd", "svd_rank": 4}, "svd_rank: a sum of LoRA-XS adapters is exact"),
        ({"weights": ["1"]}, "a weight must be a finite number, not '1'"),
        ({"weights": [float("nan")]}, "a weight must be a finite number, not nan"),
        ({"adapters": ["nobody"]}, "no adapter named 'nobody'; there are default"),
        ({"adapter_name": "default"}, "There is an adapter named 'default' already"),
    ],
)
def test_what_cannot_be_combined(tiny_llama, wrong, sentence):
    model = model_of(tiny_llama)
    with pytest.raises(AdapterError, match=sentence):
        model.add_weighted_adapter(**({"adapters": ["default"], "weights": [1.0], "adapter_name": "new"} | wrong))
    assert list(model.peft_config) == ["default"]


def test_a_combination_has_the_head_of_the_one_adapter_that_has_one():
    model = adapted(Net())
    model.add_adapter(
        "bare", LoraXSConfig(r=3, alpha=6, rank_pattern={"second": 5}, target_modules=["first", "second", "third"])
    )
    model.add_weighted_adapter(["bare", "default"], [1e-3, 1.0], "both")
    wanted = model(X)
    model.set_adapter("both")
    torch.testing.assert_close(model(X), wanted, atol=1e-3, rtol=1e-3)
    model.add_adapter("other", model.peft_config["default"])
    with pytest.raises(AdapterError, match=r"default and other have modules that are trained whole \(modules_to_save\)"):
        model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "two heads")


def scale(by):
    return lambda model: next(iter(layers_of(model).values())).set_scale("default", by)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (lambda model: model.add_adapter("keys", LoraXSConfig(r=2)), "PyTorch keeps the name 'keys' for itself"),
        (lambda model: model.add_adapter("a.b", LoraXSConfig(r=2)), "text without dots, not 'a.b'"),
        (lambda model: model.merge_adapter(["nobody"]), "no adapter named 'nobody'; there are default"),
        (lambda model: model.merge_and_unload(adapter_names=["nobody"]), "no adapter named 'nobody'; there are default"),
        (scale("2"), "scale must be a finite number, not '2'"),
        (scale(float("inf")), "scale must be a finite number, not inf"),
        (lambda model: next(iter(layers_of(model).values())).unscale_layer(0), "A scale of 0 cannot be undone"),
        (lambda model: hotswap.prepare_model_for_compiled_hotswap(model, target_rank=8), "needs no preparation"),
        (
            lambda model: LoraXSConfig(target_modules=["q_proj"], layers_to_transform="0"),
            "a layer's index or a list of them, not '0'",
        ),
        (
            lambda model: LoraXSConfig(target_modules=".*q_proj", layers_to_transform=[0]),
            r"would not be looked at beside .*q_proj",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(tiny_llama, asked, sentence):
    model = model_of(tiny_llama)
    before = model(IDS).logits
    with pytest.raises(AdapterError, match=sentence):
        asked(model)
    assert list(model.peft_config) == ["default"]
    torch.testing.assert_close(model(IDS).logits, before, rtol=0, atol=0)


def test_the_scale_of_an_adapter(tiny_llama, tmp_path):
    model = model_of(tiny_llama)
    layers, before = layers_of(model), deltas(model)

    def assert_scaled(factor):
        for name, one in deltas(model).items():
            torch.testing.assert_close(one, factor * before[name])

    for layer in layers.values():
        layer.set_scale("default", 3.0)
        layer.set_scale("nobody", 3.0)
    assert_scaled(3.0)
    for layer in layers.values():
        layer.scale_layer(2.0)
    assert_scaled(6.0)
    model.save_pretrained(tmp_path)  # R, and the scale that was configured
    for layer in layers.values():
        layer.unscale_layer(2.0)
    assert_scaled(3.0)
    for layer in layers.values():
        layer.unscale_layer()
    assert_scaled(1.0)
    again = PeftModel.from_pretrained(llama(tiny_llama), tmp_path)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_rescaling_for_a_while(tiny_llama):
    model = model_of(tiny_llama)
    trained, plain = model(IDS).logits, llama(tiny_llama)(IDS).logits
    with rescale_adapter_scale(model, 0.0):
        torch.testing.assert_close(model(IDS).logits, plain, rtol=0, atol=0)
    torch.testing.assert_close(model(IDS).logits, trained, rtol=0, atol=0)


def test_input_casting_can_be_switched_off(tiny_llama):
    model = model_of(tiny_llama)
    layer = layers_of(model)["model.layers.0.self_attn.q_proj"]
    x = torch.randn(2, layer.in_features, dtype=torch.float64)
    with disable_input_dtype_casting(model), pytest.raises(RuntimeError):
        layer._inside(x, *layer.frozen("default"))
    layer._inside(x, *layer.frozen("default"))
    half = model_of(tiny_llama, dtype=torch.bfloat16)
    with disable_input_dtype_casting(half):
        half(IDS)  # R in float32 between A and B in bfloat16 is no matter of the input


def test_swapping_an_adapter_s_numbers_in_place(tiny_llama, tmp_path):
    model, other = model_of(tiny_llama), model_of(tiny_llama, seed=1)
    other.save_pretrained(tmp_path / "other")
    held = cores_of(model)
    hotswap.hotswap_adapter(model, str(tmp_path / "other"), adapter_name="default")
    torch.testing.assert_close(model(IDS).logits, other(IDS).logits, rtol=0, atol=0)
    assert all(one is now for one, now in zip(held, cores_of(model), strict=True))  # nothing to compile again
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(llama(tiny_llama), tmp_path / "again")
    torch.testing.assert_close(again(IDS).logits, other(IDS).logits, rtol=0, atol=0)
    model_of(tiny_llama, alpha=2).save_pretrained(tmp_path / "unlike")
    with pytest.raises(ValueError, match="incompatible: for alpha"):
        hotswap.hotswap_adapter(model, str(tmp_path / "unlike"), adapter_name="default")
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge"):
        hotswap.hotswap_adapter(model, str(tmp_path / "other"), adapter_name="default")


def test_one_more_adapter_while_another_is_merged(tmp_path):
    adapted(Net(), modules_to_save=None).save_pretrained(tmp_path)
    model = adapted(Net(), seed=2, modules_to_save=None)
    wanted = PeftModel.from_pretrained(Net(), tmp_path)(X)
    model.merge_adapter()
    merged = model(X)
    model.add_adapter("fresh", LoraXSConfig(r=2, target_modules=["first"]))
    model.merge_adapter(["default"])
    model.load_adapter(tmp_path, "loaded")
    torch.testing.assert_close(model(X), merged, atol=1e-3, rtol=1e-3)
    model.unmerge_adapter()
    model.set_adapter("loaded")
    torch.testing.assert_close(model(X), wanted, atol=1e-3, rtol=1e-3)


def test_bases_are_never_made_of_a_merged_weight():
    model = adapted(Net(), modules_to_save=None)
    model.merge_adapter()
    with pytest.raises(AdapterError, match="cannot be taken out to the last bit"):
        model.add_adapter("larger", LoraXSConfig(r=9, target_modules=["second"]))
    assert list(model.peft_config) == ["default"]
    assert not any("larger" in layer.loraxs_R for layer in layers_of(model).values())
    other = adapted(Net(), modules_to_save=None)
    for layer in layers_of(other).values():
        layer.loraxs_R["default"].data.zero_()  # nothing is added, so all can be taken out again
    other.merge_adapter()
    other.add_adapter("larger", LoraXSConfig(r=9, target_modules=["second"]))


def test_a_broken_adapter_is_told_as_peft_tells_it(tiny_llama):
    model = model_of(tiny_llama)
    cores_of(model)[0].data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter default seems to be broken"):
        model.merge_and_unload(safe_merge=True)


def test_starting_at_the_base_model_itself(tiny_llama):
    model = model_of(tiny_llama, init_weights=True, init_std=0.0)
    torch.testing.assert_close(model(IDS).logits, llama(tiny_llama)(IDS).logits, rtol=0, atol=0)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(one.grad.abs().max() > 0 for one in cores_of(model))  # and it can leave from there
    assert len(get_peft_model_state_dict(model)) == 5


def test_a_configuration_s_file_says_what_the_configuration_does(tmp_path):
    config = LoraXSConfig(r=3, target_modules=["q_proj"])
    config.save_pretrained(tmp_path)
    read = LoraXSConfig.from_json_file(str(tmp_path / "adapter_config.json"))
    assert read | {"target_modules": set(read["target_modules"])} == config.to_dict()
    assert LoraXSConfig(**read).to_dict() == config.to_dict()
