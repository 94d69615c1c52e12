"""LoRA-XS through transformers' own adapter methods (`PeftAdapterMixin`), without a PeftModel around the model."""

from __future__ import annotations

import pytest
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from loraxs_core.errors import BasisMismatch
from loraxs_core.tuner import LoraXSConfig
from tests.core.tuners import IDS, layers_of, llama


def config(**options) -> LoraXSConfig:
    return LoraXSConfig(**({"r": 4, "target_modules": ["q_proj", "down_proj"], "init_weights": False} | options))


@pytest.fixture
def two(tiny_llama, tmp_path):
    """A model with two adapters, the folders it saved them in, and what it computes without any and with each."""
    model = llama(tiny_llama)
    outputs = {"none": model(IDS).logits}
    for name in ("first", "second"):
        model.add_adapter(config(), adapter_name=name)
        model.set_adapter(name)
        outputs[name] = model(IDS).logits.detach()
        model.save_pretrained(tmp_path / name)
    return model, tmp_path, outputs


def assert_gives(model, wanted):
    torch.testing.assert_close(model(IDS).logits, wanted, rtol=0, atol=0)


def test_adapters_are_added_chosen_switched_off_saved_and_loaded(two, tiny_llama):
    model, folder, outputs = two
    assert model.active_adapters() == ["second"]
    model.set_adapter(["first", "second"])
    both = model(IDS).logits
    assert all((both - one).abs().max() > 1e-3 for one in outputs.values())
    model.disable_adapters()
    assert_gives(model, outputs["none"])
    model.enable_adapters()
    model.set_adapter("first")
    assert_gives(model, outputs["first"])
    again = llama(tiny_llama)
    again.load_adapter(str(folder / "first"), adapter_name="a")
    again.load_adapter(str(folder / "second"), adapter_name="b", is_trainable=True)
    for name, of in (("a", "first"), ("b", "second")):
        again.set_adapter(name)
        assert_gives(again, outputs[of])
    again(input_ids=IDS, labels=IDS).loss.backward()
    assert all(layer.loraxs_R["b"].grad is not None for layer in layers_of(again).values())
    straight = llama(tiny_llama)
    straight.load_adapter(peft_config=config(), adapter_state_dict=model.get_adapter_state_dict("first"), adapter_name="x")
    assert_gives(straight, outputs["first"])


def test_one_adapter_takes_the_place_of_another(two, tiny_llama):
    """transformers swaps LoRA alone in place, and says so; there are two ways that do it here."""
    _, folder, outputs = two
    model = llama(tiny_llama)
    model.load_adapter(str(folder / "first"))
    with pytest.raises(ValueError, match="Hotswapping is currently only supported for LoRA"):
        model.load_adapter(str(folder / "second"), adapter_name="default", hotswap=True)
    assert_gives(model, outputs["first"])
    model.delete_adapter("default")
    model.load_adapter(str(folder / "second"), adapter_name="default")
    assert_gives(model, outputs["second"])

    graphs = []
    compiled = torch.compile(model, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    with torch.no_grad():
        compiled(input_ids=IDS, use_cache=False)
        set_peft_model_state_dict(model, load_file(folder / "first" / "adapter_model.safetensors"))
        swapped = compiled(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(swapped, outputs["first"], rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1  # nothing was compiled again


def test_a_swap_in_place_is_verified_as_loading_is(two, tiny_llama):
    _, folder, _ = two
    model = llama(tiny_llama)
    for parameter in model.parameters():
        parameter.data = parameter.data.flip(0).contiguous()
    model.add_adapter(config())
    with pytest.raises(BasisMismatch, match="not the base model the adapter was trained with"):
        set_peft_model_state_dict(model, load_file(folder / "first" / "adapter_model.safetensors"))
