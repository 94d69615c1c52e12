"""The names of an adapter's tensors: wrappers and other trainers' spellings understood, others refused, none taken for two things."""

from __future__ import annotations

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

from loraxs_core.adapter_names import _ADDED, ModulePaths, read_name
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError
from loraxs_core.loading import AdapterFolder, load
from loraxs_core.merging import merge
from tests.core.test_accounts import IDS, PREFIX, rewrite, saved, tensors_of, trained

WRAPPERS = {
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "torch.compile, inside": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "DDP": lambda key: f"module.{key}",
    "DDP around torch.compile": lambda key: f"module._orig_mod.{key}",
    "DeepSpeed": lambda key: f"module.module.{key}",
    "FSDP": lambda key: key.replace(".0.", ".0._fsdp_wrapped_module."),
    "FSDP and activation checkpointing": lambda key: (
        "_fsdp_wrapped_module." + key.replace(".0.", ".0._fsdp_wrapped_module._checkpoint_wrapped_module.")
    ),
    "no prefix": lambda key: key.removeprefix(PREFIX),
    "half a prefix": lambda key: key.replace(PREFIX, "base_model."),
    "no root either": lambda key: key.removeprefix(PREFIX).removeprefix("model.").removeprefix("transformer."),
    "language_model": lambda key: key.replace(PREFIX, f"{PREFIX}language_model."),
    "diffusers": lambda key: "transformer." + key.removeprefix(PREFIX),
    "unet": lambda key: "unet." + key.removeprefix(PREFIX),
    "adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "another name of it": lambda key: key.replace(".weight", ".mine.weight"),
    "kohya's factors": lambda key: key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
    "old diffusers' factors": lambda key: key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
    "everything at once": lambda key: (
        "module._orig_mod." + key.replace(".0.", ".0._fsdp_wrapped_module.").replace("lora_A", "lora_A.default")
    ),
}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_known_wrappers_are_understood(kind, tmp_path):
    base = saved(tmp_path, kind)
    folder, adapted = trained(base, tmp_path, kind=kind)
    original = (folder / "adapter_model.safetensors").read_bytes()
    with torch.no_grad():
        expected = adapted(IDS).logits
    checkpoint = Checkpoint.open(base)
    for what, rename in WRAPPERS.items():
        (folder / "adapter_model.safetensors").write_bytes(original)
        rewrite(folder, rename)
        with torch.no_grad():
            got = load(AdapterFolder(folder), checkpoint).model(IDS).logits
        torch.testing.assert_close(got, expected, msg=what)


def test_kohyas_names_and_its_alpha_are_understood(tmp_path):
    base = saved(tmp_path)
    folder, adapted = trained(base, tmp_path, r=2, lora_alpha=16)

    def kohya(tensors):
        renamed = {}
        for key, tensor in tensors.items():
            module, _, factor = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
            short = f"lora_te_{module.replace('.', '_')}"
            renamed[f"{short}.{ {'lora_A': 'lora_down', 'lora_B': 'lora_up'}[factor] }.weight"] = tensor
            renamed[f"{short}.alpha"] = torch.tensor(3.0)
        return renamed

    rewrite(folder, edit=kohya)
    merge(folder, Checkpoint.open(base), tmp_path / "merged")
    name = "model.layers.0.self_attn.q_proj.weight"
    layer = adapted.base_model.model.get_submodule(name.removesuffix(".weight"))
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 3 / 2
    moved = tensors_of(tmp_path / "merged")[name] - tensors_of(base)[name]
    torch.testing.assert_close(moved, delta.detach(), atol=1e-6, rtol=1e-4)


def test_names_that_fit_nothing_are_refused_with_the_count_and_two_of_them(tmp_path):
    base = saved(tmp_path)
    folder, _ = trained(
        base, tmp_path, target_modules=["q_proj", "v_proj"], rename=lambda key: key.replace("self_attn", "attention")
    )
    with pytest.raises(
        AdapterError, match=r"4 of the 4 tensors of .*adapter have no place .*attention.*lora_A.*, .* and 2 more; "
    ):
        merge(folder, Checkpoint.open(base), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_every_method_of_peft_is_told_from_a_module():
    """A new method's parameters would be taken for a module of the model."""
    import loraxs_core.tuner  # noqa: F401

    unknown = [prefix for prefix in PEFT_TYPE_TO_PREFIX_MAPPING.values() if not _ADDED.match(prefix + "_")]
    assert not unknown


def test_names_with_more_than_one_meaning_have_none():
    paths = ModulePaths(["model.layers.0.q_proj", "language_model.layers.0.q_proj", "model.layers.0.k_proj"])
    assert paths.find("layers.0.q_proj") is None
    assert paths.find("model.layers.0.q_proj") == "model.layers.0.q_proj"
    assert paths.find("layers.0.k_proj") == "model.layers.0.k_proj"
    assert (
        read_name("base_model.model.embed.token_adapter.trainable_tokens_delta").part == "token_adapter.trainable_tokens_delta"
    )
