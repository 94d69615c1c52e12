"""LoRA-XS on bitsandbytes' 8-bit and 4-bit layers, with its real CPU kernels."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from loraxs_core.errors import BasisMismatch
from loraxs_core.tuner import LoraXSConfig, verify_adapter
from tests.core.tuners import IDS, layers_of

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

QUANTISED = {
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
    "4bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
}


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory):
    """A folder with a Llama whose layers are wide enough for 4-bit blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, max_position_embeddings=64
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wide_llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def base(folder, kind: str | None):
    options = {} if kind is None else {"quantization_config": QUANTISED[kind], "device_map": {"": "cpu"}}
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("kind", QUANTISED)
def test_training_saving_and_loading_on_the_same_base(wide_llama, tmp_path, kind):
    model = get_peft_model(base(wide_llama, kind), LoraXSConfig(r=8, init_weights=False))
    assert {layer.quantization_backend.backend_name for layer in layers_of(model).values()} == {f"bnb {kind}"}
    assert len(layers_of(model)) == 14
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(layer.loraxs_R["default"].grad.abs().max() > 0 for layer in layers_of(model).values())
    model.save_pretrained(tmp_path)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fresh = get_peft_model(base(wide_llama, kind), LoraXSConfig(r=8))
        again = PeftModel.from_pretrained(base(wide_llama, kind), tmp_path)
    for mine, theirs, untrained in zip(
        layers_of(model).values(), layers_of(again).values(), layers_of(fresh).values(), strict=True
    ):
        assert torch.equal(mine.get_delta_weight("default"), theirs.get_delta_weight("default"))
        assert not torch.equal(mine.get_delta_weight("default"), untrained.get_delta_weight("default"))


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_base_is_never_taken_for_the_plain_one(wide_llama, tmp_path, kind):
    """8 bits: a warning with the measured mismatch. 4 bits: too far off, an error. Both ways round, naming modules."""
    for trained, loaded in ((None, kind), (kind, None)):
        folder = tmp_path / f"{trained}"
        get_peft_model(base(wide_llama, trained), LoraXSConfig(r=8, init_weights=False)).save_pretrained(folder)
        for load in (PeftModel.from_pretrained, lambda model, folder: model.load_adapter(folder)):
            try:
                with pytest.warns(UserWarning, match=r"quantised form.*model\.layers\.0.*by up to \d+%"):
                    load(base(wide_llama, loaded), folder)
                refused = False
            except (BasisMismatch, pytest.fail.Exception):
                with pytest.raises(BasisMismatch, match=r"model\.layers\.0.*quantised.*by up to \d+%"):
                    load(base(wide_llama, loaded), folder)
                refused = True
            checks = verify_adapter(folder, base(wide_llama, loaded))
            assert {check.status for check in checks} == {"quantised"}
            assert refused == (not all(check.ok for check in checks))


@pytest.mark.parametrize("kind", QUANTISED)
def test_merging_into_a_quantised_weight(wide_llama, kind):
    model = get_peft_model(base(wide_llama, kind), LoraXSConfig(r=8, init_weights=False))
    layer = next(iter(layers_of(model).values()))
    before, delta = layer.get_base_weight().float().clone(), layer.get_delta_weight("default").detach()
    with pytest.warns(UserWarning, match="rounds it again"):
        layer.merge(safe_merge=True)
    change = layer.get_base_weight().float() - before
    step = {"8bit": 0.02, "4bit": 0.25}[kind] * float((before + delta).abs().max())
    assert (change - delta).abs().max() < step
    layer.unmerge()
    assert (layer.get_base_weight().float() - before).abs().max() < 2 * step
