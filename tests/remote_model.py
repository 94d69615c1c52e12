"""A checkpoint whose architecture transformers knows only through Python files in its folder, for tests of what may run them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

CONFIGURATION = """
from pathlib import Path

from transformers import LlamaConfig

Path({marker!r}).touch()  # proof that this file was run


class GaugeConfig(LlamaConfig):
    model_type = "gauge"
"""

MODELLING = """
import torch
from transformers import LlamaForCausalLM

from .configuration_gauge import GaugeConfig


class GaugeForCausalLM(LlamaForCausalLM):
    config_class = GaugeConfig

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("table", torch.empty({table}, dtype=torch.float32), persistent=False)
"""

LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def own_modules(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Has transformers keep its copies of such code in `folder`, not in the user's cache, and forget what it imported before."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


def write_remote_model(folder: Path, *, table: int = 256) -> Path:
    """Writes a small Llama of a model type of its own into `folder`, and returns the file that appears when its code is run.

    table: numbers in a buffer that the modelling file adds, four bytes each: so its text decides a little of the memory.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    marker = folder.with_name(f"{folder.name}-was-run")
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "gauge",
        "architectures": ["GaugeForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_gauge.GaugeConfig",
            "AutoModelForCausalLM": "modeling_gauge.GaugeForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_gauge.py").write_text(CONFIGURATION.format(marker=str(marker)))
    (folder / "modeling_gauge.py").write_text(MODELLING.format(table=table))
    return marker
