"""What LoraXSConfig adapts by itself: the layers that the workbench calls ``paper``, in every architecture it knows."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel

from loraxs_core.architecture import OWN, inventory_from_config, meta_model
from loraxs_core.errors import AdapterError
from loraxs_core.targets import select_targets, target_patterns
from loraxs_core.tuner import LoraXSConfig
from loraxs_core.tuner.targets import paper_targets
from tests.core.architectures import CASES
from tests.core.tuners import layers_of


@pytest.mark.parametrize("case", CASES, ids=str)
def test_workbench_and_configuration_agree(case):
    checkpoint = inventory_from_config(case.config, str(case))
    planned = target_patterns(checkpoint, select_targets(checkpoint, "paper"))
    assert set(paper_targets(meta_model(checkpoint, OWN))) == set(planned)


@pytest.mark.parametrize(
    ("model_type", "settings", "modules"),
    [
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40}, 8),
        ("distilbert", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 40}, 8),
        (
            "vit",
            {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32},
            8,
        ),
    ],
)
def test_an_adapter_without_target_modules(model_type, settings, modules):
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **settings))
    adapted = get_peft_model(model, LoraXSConfig(r=2))
    assert len(layers_of(adapted)) == modules
    adapted.add_adapter("second", LoraXSConfig(r=2))  # the layers of the first are not targets of the second
    assert adapted.peft_config["second"].target_modules == adapted.peft_config["default"].target_modules


def test_a_model_that_nobody_knows_is_to_name_its_layers():
    with pytest.raises(AdapterError, match="name target_modules in LoraXSConfig"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), LoraXSConfig(r=2))
    with torch.no_grad():
        adapted = get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), LoraXSConfig(r=2, target_modules=["1"]))
    assert len(layers_of(adapted)) == 1
