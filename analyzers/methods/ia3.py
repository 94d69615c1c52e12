"""IA3: one trained scale for each output feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyzers.methods.method import PEFT_BENCHMARK, AdapterSpec, Method, Rate, common
from analyzers.methods.saved import PREFIX, Module, Saved, Tensor

if TYPE_CHECKING:
    from peft import PeftConfig


def config(spec: AdapterSpec) -> PeftConfig:
    from peft import IA3Config

    given = common(spec)
    # PEFT wants the feed-forward modules spelt as the targets are, which may be whole names.
    asked = given.pop("feedforward_modules", ())
    feedforward = [
        target for target in given["target_modules"] if any(target == name or target.endswith(f".{name}") for name in asked)
    ]
    return IA3Config(**given, feedforward_modules=feedforward)


def written(spec: AdapterSpec, modules: Sequence[Module], dtype: str) -> Saved:
    """A scale for each output feature; no module counts as feed-forward here (see `config`)."""
    tensors = {f"{PREFIX}{module.path}.ia3_l": Tensor((module.out, 1), module.dtype(dtype)) for module in modules}
    return Saved(tensors, tuple(tensors.values()))


METHODS = (
    Method(
        "ia3",
        "IA3",
        "One trained scale a feature.",
        "arXiv 2205.05638",
        3e-3,
        causal=Rate(5e-3, PEFT_BENCHMARK),
        peft_type="IA3",
        ranked=False,
        config=config,
        written=written,
        copies_output=True,
        kept=lambda module, trained_bytes, dropout: 4 * module.out,
    ),
)
