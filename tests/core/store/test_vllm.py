"""The resolver against vLLM's documented interface: its own classes where vLLM is installed, else the same contract."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loraxs_core.errors import BasisMismatch, SettingsError
from loraxs_core.store import vllm_resolver
from tests.core.store.stores import saved
from tests.core.tuners import IDS


@pytest.fixture
def registered(monkeypatch) -> dict:
    """Name -> resolver, of those that were registered with vLLM."""
    if importlib.util.find_spec("vllm") is not None:
        from vllm.lora.resolver import LoRAResolverRegistry

        monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {})
        return LoRAResolverRegistry.resolvers

    class LoRAResolver(ABC):
        @abstractmethod
        async def resolve_lora(self, base_model_name: str, lora_name: str): ...

    @dataclass
    class LoRARequest:
        lora_name: str
        lora_int_id: int
        lora_path: str

    class LoRAResolverRegistry:
        resolvers: dict = {}  # noqa: RUF012

        @classmethod
        def register_resolver(cls, name: str, resolver) -> None:
            assert isinstance(resolver, LoRAResolver)
            cls.resolvers[name] = resolver

    for name, content in {
        "vllm": {},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.lora.resolver": {"LoRAResolver": LoRAResolver, "LoRAResolverRegistry": LoRAResolverRegistry},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return LoRAResolverRegistry.resolvers


@pytest.fixture
def resolver(registered, store, tiny_llama, monkeypatch):
    monkeypatch.setenv("LORAXS_STORE", str(store.folder))
    monkeypatch.setenv("LORAXS_STORE_BASE", str(tiny_llama))
    vllm_resolver.register()
    return registered[vllm_resolver.NAME]


def asked(resolver, name: str):
    return asyncio.run(resolver.resolve_lora("whatever it is served as", name))


def test_an_adapter_becomes_the_lora_that_does_the_same(resolver, folders, tiny_llama):
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    requests = {name: asked(resolver, name) for name in ("user-1", "user-4")}
    for name, request in requests.items():
        with torch.no_grad():
            lora = (
                PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), request.lora_path)
                .eval()(IDS)
                .logits
            )
            ours = (
                PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), folders / name).eval()(IDS).logits
            )
            assert (ours - base(IDS).logits).abs().max() > 1e-3
        torch.testing.assert_close(lora, ours, atol=1e-5, rtol=1e-5)
    assert requests["user-1"].lora_int_id != requests["user-4"].lora_int_id
    assert requests["user-1"].lora_name == "user-1"


def test_bases_are_rebuilt_once_a_plan(resolver, monkeypatch):
    from loraxs_core.tuner.folder import Adapter

    built = []
    restored = Adapter.restored_bases
    monkeypatch.setattr(
        Adapter,
        "restored_bases",
        lambda self, name, *given, **named: built.append(name) or restored(self, name, *given, **named),
    )
    asked(resolver, "user-0")
    assert len(built) == 6
    asked(resolver, "user-1")
    assert len(built) == 6


def test_a_version_can_be_named_and_a_new_one_is_another_lora(resolver, store, folders):
    first = asked(resolver, "user-2")
    assert asked(resolver, "user-2").lora_path == first.lora_path
    new = store.put("user-2", folders / "user-3")
    assert asked(resolver, "user-2").lora_path != first.lora_path
    assert asked(resolver, "user-2@3").lora_path == first.lora_path
    assert asked(resolver, f"user-2@{new.version}").lora_int_id == asked(resolver, "user-2").lora_int_id


def test_what_the_store_does_not_have_is_left_to_other_resolvers(resolver):
    for name in ("nobody", "user-0@77", "@", "user-0@x", ""):
        assert asked(resolver, name) is None


def test_another_base_is_refused(resolver, store, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    store.put("stranger", saved(tmp_path / "other", tmp_path / "adapter", 1))
    with pytest.raises(BasisMismatch):
        asked(resolver, "stranger")


def test_nothing_is_registered_unasked_and_a_missing_base_is_said(registered, store, monkeypatch):
    monkeypatch.delenv("LORAXS_STORE", raising=False)
    vllm_resolver.register()
    assert not registered
    monkeypatch.setenv("LORAXS_STORE", str(store.folder))
    with pytest.raises(SettingsError, match="LORAXS_STORE_BASE"):
        vllm_resolver.register()


def test_vllm_finds_it_by_the_entry_point_that_is_declared():
    import tomllib
    from pathlib import Path

    written = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = written["project"]["entry-points"]["vllm.general_plugins"]["loraxs_store"].partition(":")
    assert getattr(importlib.import_module(module), function) is vllm_resolver.register
