"""Many adapters in one batch: every row as if it were alone, whatever the adapters' ranks, targets, bases and precisions."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModel

from loraxs_core.errors import AdapterError
from loraxs_core.tuner import LoraXSConfig
from loraxs_core.tuner.mixed_batch import Mixture
from tests.core.tuners import IDS, layers_of, llama


def alone(model, ids, name):
    if name == "__base__":
        with model.disable_adapter():
            return model(ids).logits
    model.set_adapter(name)
    return model(ids).logits


def assert_rows_are_as_alone(model, ids, names):
    with torch.no_grad():
        mixed = model(ids, adapter_names=names).logits
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row : row + 1], alone(model, ids[row : row + 1], name), atol=1e-5, rtol=1e-5)


@pytest.fixture
def fleet(tiny_llama):
    """Adapters of other ranks by layer, other targets, other places of the singular values, other vectors, other scales."""
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, init_weights=False), adapter_name="one")
    for name, config in {
        "two": LoraXSConfig(r=4, alpha=12, init_weights=False),
        "deep": LoraXSConfig(r=2, rank_pattern={"layers.1.mlp.down_proj": 9, "q_proj": 5}, init_weights=False),
        "few": LoraXSConfig(r=3, target_modules=["v_proj", "embed_tokens"], init_weights=False),
        "split": LoraXSConfig(r=4, sigma="split", init_weights=False),
        "middle": LoraXSConfig(r=4, vectors="middle", target_modules=["q_proj", "embed_tokens"], init_weights=False),
        "random": LoraXSConfig(r=4, vectors="random", seed=3, init_weights=False),
    }.items():
        model.add_adapter(name, config)
    return model.eval()


@pytest.mark.parametrize(
    "names",
    [
        ["one", "two", "deep", "few", "split", "middle", "random", "__base__"],
        ["one"] * 8,
        ["__base__"] * 8,
        ["__base__"] * 7 + ["deep"],  # one row of eight: taken out of the batch
        ["__base__", "__base__", "one", "two", "one", "deep", "one", "two"],  # most rows: the others meet zeros
        ["few", "one"] * 4,
    ],
)
def test_every_row_is_as_if_it_were_alone(fleet, names):
    assert_rows_are_as_alone(fleet, torch.cat([IDS, IDS.flip(0)]), names)


def test_what_changes_between_two_batches_is_seen(fleet):
    names = ["one", "two", "deep", "few"]
    fleet(IDS, adapter_names=names)
    layer = layers_of(fleet)["model.layers.0.self_attn.q_proj"]
    layer.loraxs_R["one"].data.mul_(3.0)  # as an average of weights does it, past autograd's counter of versions
    layer.loraxs_R["two"] = torch.nn.Parameter(torch.eye(4))
    layer.scaling["deep"] *= 2
    assert_rows_are_as_alone(fleet, IDS, names)
    fleet.delete_adapter("few")
    fleet.add_adapter("few", LoraXSConfig(r=6, init_weights=False))
    assert_rows_are_as_alone(fleet, IDS, names)


def test_one_product_for_all_adapters_that_share_bases(fleet):
    layer = layers_of(fleet)["model.layers.1.mlp.down_proj"]
    x = torch.randn(6, 3, layer.in_features)
    shares = Mixture(["one", "two", "deep", "one", "__base__", "split"]).shares(layer, x)
    assert [tuple(one.cores.shape) for one in shares] == [(4, 9, 9), (4, 4)]  # three and zeros for the others; one alone
    assert shares[1].rows.tolist() == [5]


def test_gradients_reach_every_adapter_of_the_batch(fleet):
    fleet.base_model.set_requires_grad(["one", "deep"])
    fleet(IDS, adapter_names=["one", "deep", "one", "__base__"]).logits.square().sum().backward()
    for layer in layers_of(fleet).values():
        assert all(layer.loraxs_R[name].grad is not None for name in ("one", "deep") if name in layer.loraxs_R)
    wanted = layers_of(fleet)["model.layers.0.self_attn.q_proj"].loraxs_R["deep"].grad.clone()
    fleet.zero_grad()
    fleet.set_adapter("deep")
    fleet(IDS[1:2]).logits.square().sum().backward()
    torch.testing.assert_close(
        wanted, layers_of(fleet)["model.layers.0.self_attn.q_proj"].loraxs_R["deep"].grad, rtol=1e-4, atol=1e-5
    )


def wanting(model) -> set[str]:
    return {name for layer in layers_of(model).values() for name, R in layer.loraxs_R.items() if R.requires_grad}


def test_only_the_active_adapter_is_trained_whoever_asked_for_another(fleet):
    fleet.set_adapter("one")
    assert wanting(fleet) == {"one"}
    fleet.base_model.set_requires_grad(["deep", "two"])
    for name, R in fleet.named_parameters():
        if name.endswith("loraxs_R.split"):
            R.requires_grad_(True)
    fleet.set_adapter("few")
    assert wanting(fleet) == {"few"}
    fleet.set_adapter("one", inference_mode=True)
    assert wanting(fleet) == set()


def test_sixteen_bit_bases_and_cores(tiny_llama):
    model = get_peft_model(
        llama(tiny_llama, dtype=torch.bfloat16),
        LoraXSConfig(r=4, init_weights=False),
        adapter_name="one",
        autocast_adapter_dtype=False,
    ).eval()
    model.add_adapter("two", LoraXSConfig(r=4, init_weights=False))
    held = {name: {layer.loraxs_R[name].dtype for layer in layers_of(model).values()} for name in ("one", "two")}
    assert held == {"one": {torch.bfloat16}, "two": {torch.float32}}
    with torch.no_grad():
        mixed = model(IDS, adapter_names=["one", "two", "one", "__base__"]).logits
        for row, name in enumerate(["one", "two", "one", "__base__"]):
            torch.testing.assert_close(mixed[row : row + 1], alone(model, IDS[row : row + 1], name), atol=0.02, rtol=0.05)


def test_generating_several_answers_to_each_prompt(fleet):
    names = ["one", "__base__", "deep", "few"]
    torch.manual_seed(0)
    several = fleet.generate(
        IDS, adapter_names=names, max_new_tokens=3, do_sample=True, top_k=1, num_return_sequences=2, pad_token_id=0
    )
    once = fleet.generate(IDS, adapter_names=names, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(several[::2], once)
    assert torch.equal(several[1::2], once)


def test_a_layer_refuses_what_it_cannot_do(fleet):
    layer = layers_of(fleet)["model.layers.0.self_attn.q_proj"]
    x = torch.randn(2, 3, layer.in_features)
    with pytest.raises(ValueError, match="same as the number of inputs"):
        layer(x, adapter_names=["one"])
    fleet.add_adapter("dropping", LoraXSConfig(r=4, dropout=0.5))
    layer.train()
    with pytest.raises(ValueError, match="training mode"):
        layer(x, adapter_names=["one", "dropping"])
    layer.eval()
    layer.merge(adapter_names=["one"])
    with pytest.raises(ValueError, match="merged"):
        layer(x, adapter_names=["one", "two"])


@pytest.fixture
def saved(tiny_llama, tmp_path) -> Path:
    for seed in range(3):
        torch.manual_seed(seed)
        model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, init_weights=False, task_type="CAUSAL_LM"))
        model.save_pretrained(tmp_path / str(seed))
    return tmp_path


def walked(model) -> list[str]:
    """Functions of PEFT that go through the whole model, as `load_adapter` of one more adapter calls them."""
    import sys

    seen = []

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_name in ("named_modules", "state_dict", "load_state_dict", "named_parameters"):
            seen.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        model()
    finally:
        sys.setprofile(None)
    return seen


def test_one_more_adapter_of_a_kind_is_loaded_without_going_through_the_model(tiny_llama, saved):
    model = PeftModel.from_pretrained(llama(tiny_llama), saved / "0", adapter_name="a0")
    assert walked(lambda: model.load_adapter(saved / "1", "a1")) == []
    result = model.load_adapter(str(saved / "2"), "a2")
    assert not result.missing_keys
    assert not result.unexpected_keys
    for number in range(3):
        other = PeftModel.from_pretrained(llama(tiny_llama), saved / str(number))
        model.set_adapter(f"a{number}")
        torch.testing.assert_close(model(IDS).logits, other(IDS).logits, rtol=0, atol=0)
    layer = layers_of(model)["model.layers.0.mlp.up_proj"]
    assert len(layer.loraxs_A) == 1
    assert not layer.loraxs_R["a1"].requires_grad
    assert not model.training
    assert walked(lambda: model.delete_adapter("a1")) == []
    assert "a1" not in model.peft_config
    assert all("a1" not in one.loraxs_R for one in layers_of(model).values())
    with pytest.raises(ValueError, match="non-existing adapter"):
        model(IDS, adapter_names=["a1"] * 4)
    model.save_pretrained(saved / "again", selected_adapters=["a2"])
    assert (saved / "again/a2/adapter_model.safetensors").read_bytes() == (saved / "2/adapter_model.safetensors").read_bytes()


def test_a_damaged_adapter_is_refused_on_the_quick_way_and_leaves_nothing(tiny_llama, saved):
    model = PeftModel.from_pretrained(llama(tiny_llama), saved / "0", adapter_name="a0")
    file = saved / "1/adapter_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 0x40
    file.write_bytes(raw)
    with pytest.raises(AdapterError):
        model.load_adapter(saved / "1", "a1")
    assert list(model.peft_config) == ["a0"]
    assert all("a1" not in one.loraxs_R for one in layers_of(model).values())
    model.load_adapter(saved / "2", "a1")


def test_the_other_ways_to_load_still_work(tiny_llama, saved):
    model = PeftModel.from_pretrained(llama(tiny_llama), saved / "0", adapter_name="a0")
    model.load_adapter(saved / "1", "trained", is_trainable=True)
    assert all(layer.loraxs_R["trained"].requires_grad for layer in layers_of(model).values())
    model.load_adapter(saved / "1", "meta", low_cpu_mem_usage=True)
    model.load_adapter(saved, "inside", subfolder="2")
    wanted = {"trained": "1", "meta": "1", "inside": "2"}
    for name, number in wanted.items():
        model.set_adapter(name)
        other = PeftModel.from_pretrained(llama(tiny_llama), saved / number)
        torch.testing.assert_close(model(IDS).logits, other(IDS).logits, rtol=0, atol=0)


def test_other_targets_and_heads_are_loaded_as_peft_does(tiny_bert, tmp_path):
    for name, more in {"plain": {}, "other": {"target_modules": ["query"]}, "head": {"modules_to_save": ["pooler"]}}.items():
        get_peft_model(AutoModel.from_pretrained(tiny_bert), LoraXSConfig(r=3, init_weights=False, **more)).save_pretrained(
            tmp_path / name
        )
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), tmp_path / "plain", adapter_name="plain")
    for name in ("other", "head"):
        model.load_adapter(tmp_path / name, name)
        model.set_adapter(name)
        other = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), tmp_path / name)
        torch.testing.assert_close(model(IDS)[1], other(IDS)[1], rtol=0, atol=0)


def test_adapters_of_one_other_base_share_their_turned_bases(tiny_llama, saved):
    """On a 16-bit copy of the base some vectors are turned back; once, not once an adapter."""
    base = llama(tiny_llama, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, saved / "0", adapter_name="a0")
    for number in (1, 2):
        model.load_adapter(saved / str(number), f"a{number}")
    for layer in layers_of(model).values():
        assert len({layer.basis_key[name] for name in ("a0", "a1", "a2")}) == 1
        assert len(layer.loraxs_A) == 1
    twin = copy.deepcopy(model)
    twin.load_adapter(saved / "0", "late")
    assert "late" in layers_of(twin)["model.layers.0.mlp.up_proj"].loraxs_R
    assert "late" not in layers_of(model)["model.layers.0.mlp.up_proj"].loraxs_R


@pytest.mark.parametrize("active", ["head", "plain"])
def test_adapters_with_and_without_a_head_of_their_own(tiny_llama, active):
    """PEFT's wrapper of a head looks every adapter of the batch up in its own table: KeyError for one that has no head."""
    model = get_peft_model(
        llama(tiny_llama), LoraXSConfig(r=4, init_weights=False, modules_to_save=["lm_head"]), adapter_name="head"
    )
    model.add_adapter("plain", LoraXSConfig(r=4, init_weights=False))
    torch.nn.init.normal_(model.base_model.model.lm_head.modules_to_save["head"].weight)
    model.eval().set_adapter(active)
    names = ["head", "plain", "__base__", "head"]
    with torch.no_grad():
        mixed = model(IDS, adapter_names=names).logits
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row : row + 1], alone(model, IDS[row : row + 1], name), atol=1e-5, rtol=1e-5)
    assert float((mixed[0] - mixed[1]).abs().max()) > 1
