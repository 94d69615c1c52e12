"""What PEFT calls variants of LoRA, all of its type LORA: rsLoRA, DoRA, PiSSA."""

from __future__ import annotations

from collections.abc import Sequence

from analyzers.methods.lora import config, written
from analyzers.methods.method import PEFT_BENCHMARK, AdapterSpec, Method, Rate
from analyzers.methods.saved import PREFIX, Module, Saved, Tensor


def written_by_dora(spec: AdapterSpec, modules: Sequence[Module], dtype: str) -> Saved:
    """LoRA's two and a magnitude for each output feature."""
    tensors = dict(written(spec, modules, dtype).tensors)
    for module in modules:
        tensors[f"{PREFIX}{module.path}.lora_magnitude_vector"] = Tensor((module.out,), module.dtype(dtype))
    return Saved(tensors, tuple(tensors.values()))


METHODS = (
    Method(
        "rslora",
        "rsLoRA",
        "LoRA scaled by 1/sqrt(r).",
        "arXiv 2312.03732",
        5e-4,
        2.0,
        causal=Rate(1e-4, PEFT_BENCHMARK),
        peft_type="LORA",
        config=lambda spec: config(spec, use_rslora=True),
        written=written,
        lora_family=True,
        copies_output=True,
    ),
    Method(
        "dora",
        "DoRA",
        "LoRA on the direction, a trained magnitude a row.",
        "arXiv 2402.09353",
        5e-4,
        2.0,
        causal=Rate(1e-4, PEFT_BENCHMARK),
        peft_type="LORA",
        per_layer_ranks=True,
        config=lambda spec: config(spec, use_dora=True),
        written=written_by_dora,
        lora_family=True,
        copies_output=True,
    ),
    Method(
        "pissa",
        "PiSSA",
        "LoRA started from the top singular triples.",
        "arXiv 2404.02948",
        5e-4,
        causal=Rate(2e-5, "the authors' scripts, MetaMathQA at r = 128"),
        peft_type="LORA",
        per_layer_ranks=True,
        config=lambda spec: config(spec, init_lora_weights="pissa_niter_16"),
        written=written,
        rank_within_matrix=True,
        starts_from_svd=True,
        changes_base=True,
        lora_family=True,
        copies_output=True,
    ),
)
