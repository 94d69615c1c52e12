"""VB-LoRA: A and B put together from short vectors of one bank that all modules share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyzers.methods.method import PEFT_BENCHMARK, AdapterSpec, Method, Rate, common
from analyzers.methods.saved import PREFIX, Module, Saved, Tensor
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    from peft import PeftConfig

# PEFT's own 256 does not divide 384 or 576, and a vector's length has to divide both sides of every target.
VECTOR_LENGTH, VECTORS = 64, 256


def config(spec: AdapterSpec) -> PeftConfig:
    from peft import VBLoRAConfig

    own = {"vector_length": VECTOR_LENGTH, "num_vectors": VECTORS}
    return VBLoRAConfig(r=spec.rank, vblora_dropout=spec.dropout, **{**own, **common(spec)})


def written(spec: AdapterSpec, modules: Sequence[Module], dtype: str) -> Saved:
    """The bank (vectors x length) and, a module, the logits that choose from it: A's (r x in / length x vectors), B's (out / length
    x r x vectors). Raises SettingsError where the length does not divide a side."""
    length, vectors = (int(spec.options.get(*one)) for one in (("vector_length", VECTOR_LENGTH), ("num_vectors", VECTORS)))
    tensors = {}
    for module in modules:
        if module.out % length or module.inner % length:
            raise SettingsError(
                f"{module.path} is {module.out}x{module.inner}, and VB-LoRA cuts both sides into vectors of {length}, which divides "
                "not both; give a vector_length that does."
            )
        own = module.dtype(dtype)
        tensors[f"{PREFIX}{module.path}.vblora_logits_A"] = Tensor((spec.rank, module.inner // length, vectors), own)
        tensors[f"{PREFIX}{module.path}.vblora_logits_B"] = Tensor((module.out // length, spec.rank, vectors), own)
    tensors["base_model.vblora_vector_bank"] = Tensor((vectors, length), modules[-1].dtype(dtype))
    return Saved(tensors, tuple(tensors.values()))


METHODS = (
    Method(
        "vblora",
        "VB-LoRA",
        "A and B mixed from the vectors of one shared bank.",
        "arXiv 2405.15179",
        1e-2,
        rate_source="arXiv 2405.15179, of the logits",
        causal=Rate(5e-4, PEFT_BENCHMARK),
        peft_type="VBLORA",
        default_rank=4,
        config=config,
        written=written,
        written_options=frozenset({"vector_length", "num_vectors", "topk", "init_vector_bank_bound", "init_logits_std"}),
        copies_output=True,
    ),
)
