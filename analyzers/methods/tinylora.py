"""TinyLoRA: LoRA-XS whose R is a few trained numbers times fixed random matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyzers.methods.method import AdapterSpec, Method, Rate, common, kept_as_lora_xs
from analyzers.methods.saved import PREFIX, Module, Saved, Tensor

if TYPE_CHECKING:
    from peft import PeftConfig


def config(spec: AdapterSpec) -> PeftConfig:
    from peft import TinyLoraConfig

    return TinyLoraConfig(r=spec.rank, **common(spec))


def written(spec: AdapterSpec, modules: Sequence[Module], dtype: str) -> Saved:
    """A (r x in), B (out x r) and, with ``save_projection`` (PEFT's default), P (u x r x r) a module; and the trained vectors
    of u numbers: one a module, or one a group of modules with ``weight_tying``. A rank beyond a matrix's own is cut down to
    it."""
    length = int(spec.options.get("u", 64))
    frozen = {}
    for module in modules:
        rank, own = min(module.rank, module.out, module.inner), module.dtype(dtype)
        frozen[f"{PREFIX}{module.path}.tinylora_A"] = Tensor((rank, module.inner), own)
        frozen[f"{PREFIX}{module.path}.tinylora_B"] = Tensor((module.out, rank), own)
        frozen[f"{PREFIX}{module.path}.tinylora_P"] = Tensor((length, rank, rank), own)
    groups = max(1, round(len(modules) * (1 - spec.options.get("weight_tying", 0.0))))
    groups = min(groups, -(-len(modules) // max(1, len(modules) // groups)))  # PEFT fills groups of n // groups modules in turn
    shared = modules[-1].dtype(dtype)  # PEFT moves them to the precision of each module in turn
    vectors = {f"base_model.tinylora_v.{index}": Tensor((length,), shared) for index in range(groups)}
    kept = frozen if spec.options.get("save_projection", True) else {key: one for key, one in frozen.items() if key[-1] != "P"}
    return Saved({**kept, **vectors}, tuple(vectors.values()), sum(tensor.numbers for tensor in frozen.values()))


METHODS = (
    Method(
        "tinylora",
        "TinyLoRA",
        "R as a few trained numbers times fixed matrices.",
        "PEFT 0.21",
        4e-3,
        causal=Rate(4e-3, "LoRA-XS's; PEFT's own MetaMathQA benchmark takes 1e-4, and 1e-3 with tied weights"),
        peft_type="TINYLORA",
        config=config,
        written=written,
        written_options=frozenset(
            {"u", "weight_tying", "save_projection", "projection_seed", "init_v_bound", "tinylora_dropout"}
        ),
        starts_from_svd=True,
        kept=kept_as_lora_xs,
    ),
)
