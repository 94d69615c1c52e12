"""A model with a store behind it."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from loraxs_core.errors import BasisMismatch, SettingsError, StoreError
from loraxs_core.store import AdapterStore
from loraxs_core.tuner import LoraXSConfig
from tests.core.store.stores import saved
from tests.core.tuners import IDS


def base(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def alone(tiny_llama, folders) -> dict[str, torch.Tensor]:
    """What every adapter says of the four rows, loaded by itself through PEFT."""
    with torch.no_grad():
        found = {"__base__": base(tiny_llama)(IDS).logits}
        for index in range(6):
            found[f"user-{index}"] = PeftModel.from_pretrained(base(tiny_llama), folders / f"user-{index}")(IDS).logits
    return found


def check(served, alone, names):
    with torch.no_grad():
        logits = served(IDS[: len(names)], adapters=names).logits
    for row, name in enumerate(names):
        torch.testing.assert_close(logits[row], alone[name][row], atol=1e-5, rtol=1e-5)


def test_every_row_goes_through_its_adapter_however_few_stay_resident(store, tiny_llama, alone):
    served = store.attach(base(tiny_llama), resident=3)
    for names in (
        ["user-0", "user-1", "__base__", "user-0"],
        ["user-2", "user-3", "user-4", "user-2"],
        ["user-5", "user-0", "user-2", "__base__"],
        ["user-1", "user-1", "user-1", "user-1"],
        ["__base__"] * 4,
    ):
        check(served, alone, names)
        assert len(served.resident) <= 3
    assert len(served.model.peft_config) == 3


def test_what_was_used_longest_ago_gives_way(store, tiny_llama, alone):
    served = store.attach(base(tiny_llama), resident=2)
    for name in ("user-0", "user-1", "user-0", "user-2"):
        check(served, alone, [name])
    kept = [store.newest(name).version for name in ("user-0", "user-2")]
    assert served.resident == kept


def test_a_new_version_serves_at_once_and_a_deleted_one_no_more(store, folders, tiny_llama, alone):
    served = store.attach(base(tiny_llama))
    check(served, alone, ["user-0"])
    store.put("user-0", folders / "user-4")
    with torch.no_grad():
        torch.testing.assert_close(served(IDS, adapters=["user-0"] * 4).logits, alone["user-4"], atol=1e-5, rtol=1e-5)
    store.delete("user-0")
    with pytest.raises(StoreError, match="There is no adapter 'user-0'"):
        served(IDS, adapters=["user-0"] * 4)


def test_generate_takes_an_adapter_a_row(store, tiny_llama, folders):
    served = store.attach(base(tiny_llama), resident=2)
    names = ["user-3", "__base__"]
    found = served.generate(IDS[:2], adapters=names, max_new_tokens=5, do_sample=False)
    one = PeftModel.from_pretrained(base(tiny_llama), folders / "user-3")
    assert torch.equal(found[:1], one.generate(input_ids=IDS[:1], max_new_tokens=5, do_sample=False))
    with one.disable_adapter():
        assert torch.equal(found[1:], one.generate(input_ids=IDS[1:2], max_new_tokens=5, do_sample=False))


def test_plans_live_side_by_side(store, tiny_llama, tmp_path, alone):
    folder = saved(tiny_llama, tmp_path / "wide", 7, r=7, target_modules=["o_proj", "q_proj"])
    store.put("wide", folder)
    with torch.no_grad():
        wide = PeftModel.from_pretrained(base(tiny_llama), folder)(IDS).logits
    served = store.attach(base(tiny_llama), resident=2)
    for names in (["user-0", "wide"], ["wide", "user-1"], ["user-2", "user-3"], ["wide", "user-2"]):
        check(served, alone | {"wide": wide}, names)


def test_heads_are_served_too(store, tiny_llama, tmp_path, alone):
    folders = {
        f"head-{index}": saved(tiny_llama, tmp_path / f"head-{index}", index, modules_to_save=["lm_head"]) for index in range(3)
    }
    wanted = dict(alone)
    for name, folder in folders.items():
        store.put(name, folder)
        with torch.no_grad():
            wanted[name] = PeftModel.from_pretrained(base(tiny_llama), folder)(IDS).logits
    served = store.attach(base(tiny_llama), resident=2)
    for names in (["head-0", "head-1"], ["head-2", "head-0"], ["__base__", "head-1"]):
        check(served, wanted, names)


def test_a_model_that_has_adapters_keeps_them(store, tiny_llama, alone):
    model = get_peft_model(base(tiny_llama), LoraXSConfig(r=2, target_modules=["q_proj"]), adapter_name="mine")
    served = store.attach(model, resident=2)
    check(served, alone, ["user-0", "user-1", "__base__", "user-1"])
    assert "mine" in served.model.peft_config
    assert served.model.active_adapter == "mine"


def test_another_base_is_refused_and_the_model_stays_usable(store, tiny_llama, alone):
    stranger = base(tiny_llama)
    with torch.no_grad():
        for parameter in stranger.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        before = stranger(IDS).logits
    served = store.attach(stranger)
    with pytest.raises(BasisMismatch, match="not the base model"):
        served(IDS, adapters=["user-0"] * 4)
    with torch.no_grad():
        assert torch.equal(served(IDS, adapters=["__base__"] * 4).logits, before)


def test_bad_batches_are_said(store, tiny_llama):
    served = AdapterStore(store.folder).attach(base(tiny_llama), resident=2)
    with pytest.raises(SettingsError, match="names 3 adapters and 2 stay resident"):
        served(IDS, adapters=["user-0", "user-1", "user-2", "user-0"])
    with pytest.raises(SettingsError, match="as a list"):
        served(IDS, adapters="user-0")
    with pytest.raises(StoreError, match="There is no adapter 'nobody'"):
        served(IDS, adapters=["nobody"] * 4)
    with pytest.raises(SettingsError, match="At least 1"):
        store.attach(base(tiny_llama), resident=0)
