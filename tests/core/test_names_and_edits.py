"""Adapters whose modules have been renamed since, and adapters that were edited on purpose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from loraxs_core.errors import AdapterError, BasisMismatch
from loraxs_core.tuner import read_adapter, resign, sign, verify_adapter, verifying
from tests.core.named_nets import Net, X, adapted
from tests.core.tuners import IDS, LOADERS, llama

OLD = Path(__file__).parent / "data/proof_1"
OLD_OUTPUT = [[-40.485164642333984, 79.25659942626953], [49.5238037109375, -74.81092834472656]]
NEW_NAMES = ("zeta", "alpha", "beta", "head")  # another order in the alphabet


def renamed(state: dict) -> dict:
    for old, new in zip(("first", "second", "third"), NEW_NAMES, strict=False):
        state = {key.replace(f".{old}.", f".{new}."): one for key, one in state.items()}
    return state


def test_an_adapter_of_the_first_version_loads():
    model = PeftModel.from_pretrained(Net(), OLD)
    torch.testing.assert_close(model(X)[:2], torch.tensor(OLD_OUTPUT), rtol=1e-5, atol=1e-4)
    assert [one.status for one in verify_adapter(OLD, Net())] == ["same"] * 3
    state = load_file(OLD / "adapter_model.safetensors")
    state["base_model.model.first.loraxs_R"][0, 0] += 1
    with pytest.raises(AdapterError, match="R of first is not what it was"):
        set_peft_model_state_dict(adapted(Net()), state)


@pytest.mark.parametrize("zero", [False, True])
def test_modules_may_be_renamed_and_change_their_order(zero):
    model = adapted(Net())
    if zero:  # all R are alike then: the weights tell whose record is whose
        for name, parameter in model.named_parameters():
            if "loraxs_R" in name:
                parameter.data.zero_()
    other = adapted(Net(NEW_NAMES), seed=5, rank_pattern={"alpha": 5})
    set_peft_model_state_dict(other, renamed(get_peft_model_state_dict(model)))
    torch.testing.assert_close(other(X), model(X), rtol=0, atol=0)


def test_a_renamed_adapter_on_another_base_is_still_refused():
    state = renamed(get_peft_model_state_dict(adapted(Net())))
    base = Net(NEW_NAMES)
    base.beta.weight.data[0, 0] += 0.5
    with pytest.raises(BasisMismatch, match=r"1 of 3 weights differ \(beta;"):
        set_peft_model_state_dict(adapted(base, rank_pattern={"alpha": 5}), state)


def test_two_matrices_that_changed_places_are_not_taken_for_a_renaming():
    state = get_peft_model_state_dict(adapted(Net()))
    one, other = (f"base_model.model.{name}.loraxs_R" for name in ("first", "third"))
    state[one], state[other] = state[other], state[one]
    with pytest.raises(AdapterError, match="R of first, third is not what it was"):
        set_peft_model_state_dict(adapted(Net()), state)


def test_peft_s_key_mapping(tmp_path):
    adapted(Net()).save_pretrained(tmp_path)
    outer = nn.Module()
    outer.inner = Net()
    outer.forward = outer.inner.forward
    model = PeftModel.from_pretrained(outer, tmp_path, key_mapping={r"^(first|second|third|head)": r"inner.\1"})
    torch.testing.assert_close(model(X), adapted(Net())(X), rtol=0, atol=0)


def test_a_file_under_a_root_that_has_come_or_gone_finds_its_modules(tiny_llama, tmp_path):
    from peft import get_peft_model

    from loraxs_core.tuner import LoraXSConfig

    torch.manual_seed(2)
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=3, init_weights=False, target_modules=["q_proj", "up_proj"]))
    state = {
        key.replace("model.model.layers", "model.language_model.layers"): one
        for key, one in get_peft_model_state_dict(model).items()
    }
    other = get_peft_model(llama(tiny_llama), LoraXSConfig(r=3, target_modules=["q_proj", "up_proj"]))
    set_peft_model_state_dict(other, state)
    torch.testing.assert_close(other(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def averaged() -> dict:
    one, other = (get_peft_model_state_dict(adapted(Net(), seed=seed)) for seed in (0, 1))
    return {key: ((one[key].float() + other[key].float()) / 2).to(one[key].dtype) for key in one}


EDITS = {
    "averaged": (averaged, "proof of its bases.*edited"),
    "doubled": (lambda: {k: one * 2 if "loraxs_R" in k else one for k, one in get_peft_model_state_dict(adapted(Net())).items()}, "edited"),
    "cast": (
        lambda: {k: one.half() if one.is_floating_point() else one for k, one in get_peft_model_state_dict(adapted(Net())).items()},
        "is float16 now and was saved as float32",
    ),
    "without its proof": (
        lambda: {k: one for k, one in get_peft_model_state_dict(adapted(Net())).items() if "proof" not in k},
        "no proof",
    ),
    "another head": (lambda: {k: one + 1 if "head" in k else one for k, one in get_peft_model_state_dict(adapted(Net())).items()}, "saved whole"),
}  # fmt: skip


@pytest.mark.parametrize("how", EDITS)
def test_what_was_edited_on_purpose(how):
    made, message = EDITS[how]
    state = made()
    model = adapted(Net(), seed=7)
    with pytest.raises(AdapterError, match=message) as told:
        set_peft_model_state_dict(model, dict(state))
    assert "sign" in str(told.value)
    assert "copy" not in str(told.value)  # there was no file

    def has_it() -> bool:
        cores = {name: one for name, one in model.named_parameters() if "loraxs_R" in name}
        return all(torch.equal(one, state[name.removesuffix(".default")].float()) for name, one in cores.items())

    with verifying("off"):
        set_peft_model_state_dict(model, dict(state))
    assert has_it()
    model = adapted(Net(), seed=7)
    set_peft_model_state_dict(model, sign(state, model))
    assert has_it()
    if how != "without its proof":
        model = adapted(Net(), seed=7)
        with verifying("bases"):
            set_peft_model_state_dict(model, dict(state))
        assert has_it()


def test_bases_are_verified_where_only_they_are():
    base = Net()
    base.first.weight.data[0, 0] += 0.5
    for state in (averaged(), get_peft_model_state_dict(adapted(Net()))):
        with verifying("bases"), pytest.raises(BasisMismatch, match="1 of 3 weights differ"):
            set_peft_model_state_dict(adapted(base), dict(state))
    with verifying("off"):
        set_peft_model_state_dict(adapted(base), averaged())
    state = {key: one * float("nan") if "loraxs_R" in key else one for key, one in averaged().items()}
    with verifying("bases"), pytest.raises(AdapterError, match="NaN"):
        set_peft_model_state_dict(adapted(Net()), state)
    with pytest.raises(AdapterError, match="full, bases, off"), verifying("some"):
        pass


@pytest.fixture
def edited(tmp_path):
    """A folder whose R were halved and cast by hand."""
    adapted(Net()).save_pretrained(tmp_path / "edited")
    file = tmp_path / "edited/adapter_model.safetensors"
    state = {key: (one / 2).bfloat16() if "loraxs_R" in key else one for key, one in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    return tmp_path / "edited"


def test_a_folder_is_loaded_as_asked(edited):
    with pytest.raises(AdapterError, match="is bfloat16 now"):
        PeftModel.from_pretrained(Net(), edited)
    wanted = PeftModel.from_pretrained(Net(), edited, verify="off")(X)
    torch.testing.assert_close(PeftModel.from_pretrained(Net(), edited, verify="bases")(X), wanted, rtol=0, atol=0)
    model = PeftModel.from_pretrained(Net(), OLD)
    model.load_adapter(edited, "more", verify="bases")
    model.set_adapter("more")
    torch.testing.assert_close(model(X), wanted, rtol=0, atol=0)


def test_a_folder_is_signed_anew(edited):
    wanted = PeftModel.from_pretrained(Net(), edited, verify="off")(X)
    resign(edited)
    assert json.loads((edited / "adapter_config.json").read_text())["save_dtype"] == "bfloat16"
    assert read_adapter(edited).config.save_dtype == "bfloat16"
    torch.testing.assert_close(PeftModel.from_pretrained(Net(), edited)(X), wanted, rtol=0, atol=0)
    other = Net()
    other.first.weight.data[0, 0] += 0.5
    with pytest.raises(BasisMismatch):
        PeftModel.from_pretrained(other, edited)
    resign(edited, other)
    PeftModel.from_pretrained(other, edited)
    assert sorted(path.name for path in edited.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_signing_needs_to_know_the_base(edited):
    file = edited / "adapter_model.safetensors"
    save_file({key: one for key, one in load_file(file).items() if "proof" not in key}, file, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="give the base model"):
        resign(edited)
    resign(edited, Net())
    PeftModel.from_pretrained(Net(), edited)
    with pytest.raises(AdapterError, match="no R for first"):
        sign({}, adapted(Net()))


@pytest.mark.parametrize("load", ["transformers", "transformers, trainable"])
def test_transformers_own_way_in_heeds_the_mode(tiny_llama, tmp_path, load):
    from peft import get_peft_model

    from loraxs_core.tuner import LoraXSConfig

    get_peft_model(llama(tiny_llama), LoraXSConfig(r=3, init_weights=False)).save_pretrained(tmp_path / "one")
    file = tmp_path / "one/adapter_model.safetensors"
    save_file({key: one for key, one in load_file(file).items() if "proof" not in key}, file, metadata={"format": "pt"})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with pytest.raises(AdapterError, match="no proof"):
        LOADERS[load](llama(tiny_llama), tmp_path / "one")
    with verifying("off"):
        LOADERS[load](llama(tiny_llama), tmp_path / "two")
