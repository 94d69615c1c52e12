"""Small nets whose numbers are the same everywhere, with modules that can be called otherwise; the makers of `data/proof_1` (by version 0.1.0).

`python -m tests.core.named_nets FOLDER` writes an adapter with the proof of the version that is installed.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from peft import get_peft_model
from torch import nn

from loraxs_core.tuner import LoraXSConfig

SIZES = {"first": (12, 10), "second": (10, 12), "third": (12, 12), "head": (2, 10)}
CONFIG = {"r": 3, "alpha": 6, "rank_pattern": {"second": 5}, "modules_to_save": ["head"], "init_weights": False}
X = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 10)).astype(np.float32))


class Net(nn.Module):
    """names: what the modules are called, in the order of `SIZES`."""

    def __init__(self, names: tuple[str, ...] = tuple(SIZES)):
        super().__init__()
        self.names = names
        rng = np.random.default_rng(0)
        for name, (out, into) in zip(names, SIZES.values(), strict=True):
            layer = nn.Linear(into, out)
            layer.weight.data = torch.from_numpy(rng.standard_normal((out, into)).astype(np.float32))
            layer.bias.data = torch.from_numpy(rng.standard_normal(out).astype(np.float32))
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third, head = (self.get_submodule(name) for name in self.names)
        return head(second(torch.tanh(third(torch.tanh(first(x))))))


def adapted(net: Net, seed: int = 0, **options):
    """`net` with an adapter whose numbers are the same everywhere."""
    model = get_peft_model(net, LoraXSConfig(target_modules=list(net.names[:3]), **(CONFIG | options)))
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        if "loraxs_R" in name or "modules_to_save" in name:
            parameter.data = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)).astype(np.float32))
    return model


if __name__ == "__main__":
    made = adapted(Net())
    made.save_pretrained(sys.argv[1])
    print(made(X).tolist())
