"""Adapters: what one is, whether it fits its base, and what a fine-tune keeps at each rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from analyzers.ranks import Budget, make_plan
from loraxs_core.checkpoint import Checkpoint
from tests.app.pages import healthy, page

pytestmark = pytest.mark.usefixtures("fresh_page")


@pytest.fixture
def adapter(tiny_bert, tmp_path) -> Path:
    """A LoRA-XS adapter as PEFT saves it."""
    from peft import get_peft_model
    from transformers import AutoModel

    plan = make_plan(Checkpoint.open(tiny_bert), "uniform", budget=Budget.like_rank(4))
    model = get_peft_model(AutoModel.from_pretrained(tiny_bert), plan.lora_xs_config())
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_described_and_verified(tiny_bert, adapter):
    test = healthy(page(tiny_bert, "adapters", adapter=str(adapter)))
    assert {metric.label: metric.value for metric in test.metric}["Method"] == "LoRA-XS"
    assert "all 8 modules are rebuilt as they were trained" in test.header[0].value


def test_another_base_is_an_error_that_names_a_module(tiny_llama, adapter):
    test = page(tiny_llama, "adapters", adapter=str(adapter))
    assert not test.exception
    assert "8 of 8 modules differ" in test.header[0].value
    assert "encoder.layer.0.attention.output.dense: not in this model" in test.header[0].value


@pytest.mark.parametrize("folder", ["~nobody-of-that-name/adapter", "x" * 300])
def test_a_name_that_cannot_be_a_folder_s_is_one_sentence(tiny_bert, folder):
    test = page(tiny_bert, "adapters", adapter=folder)
    assert not test.exception
    assert "There is no adapter folder" in test.error[0].value


def test_a_folder_below_the_home_folder_may_be_named_by_it(tiny_bert, adapter, monkeypatch):
    monkeypatch.setenv("HOME", str(adapter.parent))
    test = healthy(page(tiny_bert, "adapters", adapter="~/adapter"))
    assert "all 8 modules are rebuilt as they were trained" in test.header[0].value


def test_a_folder_without_an_adapter_is_one_sentence(tiny_bert):
    test = page(tiny_bert, "adapters", adapter=str(tiny_bert))
    assert not test.exception
    assert "adapter_config.json" in test.error[0].value


def test_a_fine_tuned_sibling_shows_what_each_rank_keeps(tiny_bert, tmp_path):
    import shutil

    import numpy as np
    from safetensors.numpy import load_file, save_file

    sibling = shutil.copytree(tiny_bert, tmp_path / "sibling")
    tensors = load_file(sibling / "model.safetensors")
    random = np.random.default_rng(0)
    changed = {name: value + 0.01 * random.normal(size=value.shape).astype(value.dtype) for name, value in tensors.items()}
    save_file(changed, sibling / "model.safetensors", metadata={"format": "pt"})
    test = page(tiny_bert, "adapters", sibling=str(sibling))
    assert test.button(key="curve-sibling").label == "Compute the curve"
    healthy(test)
