"""Publicly measured fine-tunes as settings of `MemorySettings`: what each source's training script did, read in its code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from analyzers.memory import MemorySettings
from analyzers.units import GIB, MIB
from loraxs_core.architecture import inventory_from_config
from loraxs_core.checkpoint import Checkpoint


def _llama(**values) -> dict:
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"} | values


CONFIGS = {
    "meta-llama/Llama-3.2-3B": _llama(
        hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24, num_key_value_heads=8, head_dim=128,
        vocab_size=128256, tie_word_embeddings=True, max_position_embeddings=131072,
    ),
    "Llama-2-7B": _llama(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000,
        max_position_embeddings=4096,
    ),
    "NousResearch/Llama-2-70b-hf": _llama(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        vocab_size=32000, max_position_embeddings=4096,
    ),
    "mistralai/Mistral-7B-v0.1": _llama(
        model_type="mistral", architectures=["MistralForCausalLM"], hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=32000, max_position_embeddings=32768, sliding_window=4096,
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": _llama(
        model_type="mixtral", architectures=["MixtralForCausalLM"], hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=32000, max_position_embeddings=32768, num_local_experts=8,
        num_experts_per_tok=2,
    ),
    "ibm/PowerLM-3b": _llama(
        model_type="granite", architectures=["GraniteForCausalLM"], hidden_size=2304, intermediate_size=9216, num_hidden_layers=40,
        num_attention_heads=36, num_key_value_heads=36, vocab_size=49152, max_position_embeddings=4096, tie_word_embeddings=True,
    ),
    "bert-large-uncased": {
        "model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "vocab_size": 30522, "max_position_embeddings": 512,
    },
    "roberta-large": {
        "model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "vocab_size": 50265, "max_position_embeddings": 514,
        "type_vocab_size": 1, "pad_token_id": 1,
    },
}  # fmt: skip
CONFIGS["meta-llama/Llama-2-70b-hf"] = CONFIGS["NousResearch/Llama-2-70b-hf"]

_CHECKPOINTS: dict[str, Checkpoint] = {}


@dataclass(frozen=True)
class Case:
    """A measured fine-tune. source: who measured it. measured: GiB of `metric`, which is ``allocated``, ``reserved`` or ``card``
    (nvidia-smi); card: GiB that nvidia-smi showed besides. context: GiB outside of PyTorch's allocator, where the source states it.
    guessed: settings that the source does not publish and its code leaves open."""

    source: str
    name: str
    model: str
    measured: float
    metric: str
    settings: MemorySettings
    card: float | None = None
    context: float | None = None
    guessed: tuple[str, ...] = ()

    @cached_property
    def checkpoint(self) -> Checkpoint:
        if self.model not in _CHECKPOINTS:
            _CHECKPOINTS[self.model] = inventory_from_config(CONFIGS[self.model], self.model)
        return _CHECKPOINTS[self.model]

    @property
    def sharded(self) -> bool:
        return self.settings.gpus > 1


def read_cases(folder: Path) -> list[Case]:
    """The cases of the folder's files that say enough to be computed, and those of sources that publish a table by hand."""
    cases = []
    for file in ("measured_memory.json", "measured_memory_more.json"):
        for entry in json.loads((folder / file).read_text(encoding="utf-8"))["cases"]:
            make = next(make for source, make in SOURCES.items() if source in entry["source"])
            case = make(entry)
            if case:
                cases.append(case)
    return cases + _fsdp_qlora_table() + [_zero3_guide()]


def _peft(entry: Mapping) -> Case:
    """PEFT's method_comparison/MetaMathQA (run.py, data.py): the preset ``peft-bench``. The longest batch is not published; texts are
    limited to 1300 characters, "a token limit of 768"."""
    config = dict(entry["peft_config"])
    if config["peft_type"] == "OFT" and "r" in config:
        config.setdefault("oft_block_size", 0)  # one follows from the other; files of only one leave the other's default out
    settings = MemorySettings.preset("peft-bench", method="lora", peft_config=config)
    if entry["adapter_dtype"] == "bfloat16":
        settings = settings.but(adapter_dtype="bf16")
    if entry["optimizer"] == "lora-fa":
        settings = settings.but(optimizer="adamw-loop")
    name = entry["source"].partition(", ")[2].replace("llama-3.2-3B-", "")
    return Case("PEFT", name, entry["model"], entry["measured"], "reserved", settings, guessed=("sequence",))


def _perf_docs(entry: Mapping) -> Case:
    """transformers' perf_train_gpu_one of 2022: eager attention, AdamW in a Python loop, PyTorch 1.10, transformers 4.16."""
    method = entry["method"]
    settings = MemorySettings(
        method="full",
        batch=4 if "bs4" in method else 1,
        sequence=entry["sequence"],
        padding=True,  # BERT of that time added a mask of ones
        attention="eager",
        optimizer="adamw-loop",
        gradient_accumulation=4 if "ga4" in method else 1,
        gradient_checkpointing="ckpt" in method,
        transformers_version="4.16",
        torch_version="1.10",
    )
    return Case("HF docs", method, "bert-large-uncased", entry["measured"], "card", settings, context=1343 * MIB / GIB)


def _qlora(batch: int, quantize: str | None, sharding: str) -> MemorySettings:
    """AnswerDotAI/fsdp_qlora train.py: bf16 adapters, dropout 0.1, outputs kept; transformers 4.38, its AdamW of PyTorch."""
    return MemorySettings(
        method="lora", rank=64, targets="all-linear", batch=batch, sequence=2048, padding=False, base_dtype="bf16",
        adapter_dtype="bf16", gradient_checkpointing=True, quantize=quantize, optimizer="adamw", keep_logits=True, dropout=0.1,
        reentrant_checkpointing=False, gpus=2, sharding=sharding, transformers_version="4.38", torch_version="2.2",
    )  # fmt: skip


def _fsdp_qlora_table() -> list[Case]:
    """Two GPUs, as benchmarks_03_2024.md of AnswerDotAI/fsdp_qlora publishes them (2x RTX 3090, 2048 tokens, r 64, all linear)."""
    measured = (
        ("ddp", 8, "4bit", 20.94),
        ("ddp", 4, None, 22.04),
        ("fsdp", 1, "4bit", 5.21),
        ("fsdp", 4, "4bit", 11.22),
        ("fsdp", 10, "4bit", 20.97),
        ("fsdp", 1, None, 10.22),
        ("fsdp", 4, None, 16.14),
        ("fsdp", 6, None, 21.35),
    )
    return [
        Case(
            "fsdp_qlora", f"{sharding} {'QLoRA' if quantize else 'LoRA'} batch {batch}", "Llama-2-7B", gib, "reserved",
            _qlora(batch, quantize, sharding),
        )
        for sharding, batch, quantize, gib in measured
    ]  # fmt: skip


def _zero3_guide() -> Case:
    """Llama-2-70B with LoRA in PEFT's guide to DeepSpeed (docs/source/accelerate/deepspeed.md; examples/sft/train.py and its launch
    command): ZeRO-3 over 8 H100, 2048 packed tokens, rank 8 on all linear layers, flash attention, transformers of 2024.

    The figure is the memory of a card ("64 GB (80%)"); DeepSpeed casts the adapters to bf16. The guide's QLoRA figures on two GPUs
    need not be the peak of a step and are left out.
    """
    settings = MemorySettings(
        method="lora", rank=8, targets="all-linear", batch=8, sequence=2048, padding=False, base_dtype="bf16", adapter_dtype="bf16",
        dropout=0.1, gradient_checkpointing=True, gradient_accumulation=4, attention="flash_attention_2", optimizer="adamw", gpus=8,
        sharding="zero3", transformers_version="4.38", torch_version="2.2",
    )  # fmt: skip
    return Case("PEFT guide", "zero3 LoRA 70B batch 8 on 8 GPUs", "meta-llama/Llama-2-70b-hf", 64.0, "card", settings)


def _fms(entry: Mapping) -> Case:
    """foundation-model-stack/fms-acceleration scripts/benchmarks (benchmark.py, scenarios.yaml): SFTTrainer with packed batches and
    flash attention; the figures are torch's own peak and nvidia-smi's."""
    quantized = entry["quantize"] is not None
    settings = MemorySettings(
        method=entry["method"],
        peft_config={"peft_type": "LORA", **entry["peft_config"]} if entry["method"] == "lora" else None,
        batch=entry["batch"],
        sequence=entry["sequence"],
        padding=False,
        base_dtype="bf16",
        mixed_precision=entry["mixed_precision"] == "bf16",
        gradient_checkpointing=entry["gradient_checkpointing"],
        quantize="4bit" if quantized else None,
        kbit_prepared=entry["kbit_prepared_fp32"],
        optimizer="adamw",
        attention="flash_attention_2",
        gpus=entry["gpus"],
        sharding="fsdp" if entry["gpus"] > 1 else None,
        transformers_version=entry["transformers"],
        torch_version=entry["torch"],
    )
    name = entry["source"].partition(", ")[2]
    return Case(
        "fms", name, entry["model"], entry["measured"], "allocated", settings, card=entry["nvidia_smi_gib"], guessed=tuple(entry["guessed"])
    )  # fmt: skip


def _issue(entry: Mapping) -> Case:
    """huggingface/peft issue 675, a user's figures, "around": transformers 4.30 had eager attention alone."""
    full = entry["method"] == "full"
    settings = MemorySettings(
        method="full" if full else "lora", rank=None if full else 8, targets="attention.query,attention.value", batch=entry["batch"],
        sequence=entry["sequence"], attention="eager", optimizer="adamw-loop", transformers_version="4.30", torch_version="2.0",
    )  # fmt: skip
    return Case(
        "PEFT issue", entry["method"], "roberta-large", entry["measured"], "card", settings, guessed=tuple(entry["guessed"])
    )


def _torchtune(entry: Mapping) -> Case | None:
    """torchtune's own model code, which is not traced: indicative. What ``torch.compile`` fuses is not modelled: left out."""
    if entry.get("compile"):
        return None
    settings = MemorySettings(method="full", batch=entry["batch"], sequence=entry["sequence"], padding=False)
    return Case(
        "torchtune",
        entry["method"],
        "meta-llama/Llama-3.2-3B",
        entry["measured"],
        "allocated",
        settings,
        guessed=("own kernels",),
    )


SOURCES: dict[str, Callable[[Mapping], Case | None]] = {
    "PEFT method_comparison": _peft,
    "perf_train_gpu_one": _perf_docs,
    "fsdp_qlora": lambda entry: None,  # in the table below, with its neighbours
    "litgpt": lambda entry: None,  # a model of its own, and no sequence length published: nothing to compute from
    "fms-acceleration": _fms,
    "torchtune": _torchtune,
    "peft issue": _issue,
    "huggingface/trl": lambda entry: (
        None
    ),  # lengths unknown, and Mamba kernels, images or offloading of a version that is not given
}
