"""How near the memory estimates come to publicly measured fine-tunes, beside public calculators on the same cases.

    python -m benchmarks.memory_accuracy [measured_memory.json] [--json]

The measurements are not part of the repository: by default they are read from `../shared/data/measured_memory.json`. What each
training script did (which outputs it held on to, whether it emptied the cache, what its PyTorch of the time did otherwise) was
read in its source, never fitted to the figure. The calculators are evaluated from their published formulas, cited below.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from analyzers.memory import CONTEXT, MemorySettings
from analyzers.memory.distributed import one_gpu
from analyzers.memory.peak import profile
from analyzers.memory.training_step import CURRENT, OldRuntime
from analyzers.memory.whole_model import record
from analyzers.units import GIB, MIB
from loraxs_core.architecture import inventory_from_config
from loraxs_core.checkpoint import Checkpoint

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "measured_memory.json"

CONFIGS = {
    "llama-3.2-3b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
        "tie_word_embeddings": True, "max_position_embeddings": 131072,
    },
    "llama-2-7b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    },
    "llama-2-70b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "bert-large-uncased": {
        "model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "vocab_size": 30522, "max_position_embeddings": 512,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A measured fine-tune. measured: GiB. context: GiB outside of PyTorch's allocator that the figure includes."""

    name: str
    model: str
    measured: float
    settings: MemorySettings
    runtime: OldRuntime = CURRENT
    empties_cache: bool = False
    context: float = 0.0

    @property
    def checkpoint(self) -> Checkpoint:
        return inventory_from_config(CONFIGS[self.model], self.model)


def read_cases(path: Path) -> list[Case]:
    """The cases of the file that say enough to be computed."""
    cases = []
    for entry in json.loads(path.read_text(encoding="utf-8"))["cases"]:
        make = next(make for source, make in SOURCES.items() if source in entry["source"])
        case = make(entry)
        if case:
            cases.append(case)
    return cases


def _peft(entry: dict) -> Case:
    """PEFT's method_comparison/MetaMathQA/run.py: the outputs (and the key-value cache in them) live through the backward pass,
    and a bucket's longest batch follows upon ``empty_cache``."""
    options = {key: value for key, value in entry["peft_config"].items() if key not in NOT_OPTIONS}
    rank = entry["peft_config"].get("r")
    settings = MemorySettings(
        method=entry["method"],
        rank=rank,
        targets=entry["peft_config"]["target_modules"],
        batch=entry["batch"],
        sequence=entry["sequence"],
        padding=True,
        keep_logits=True,
        use_cache=True,
        options=options,
    )
    return Case(f"PEFT {entry['method']}", "llama-3.2-3b", entry["measured"], settings, empties_cache=True)


NOT_OPTIONS = {
    "peft_type", "task_type", "target_modules", "r", "lora_alpha", "psoft_alpha", "bias", "init_lora_weights", "megatron_core",
    "qalora_group_size", "init_weights", "init_ia3_weights",
}  # fmt: skip


def _perf_docs(entry: dict) -> Case:
    """transformers' perf_train_gpu_one of 2022: eager attention, AdamW in a Python loop, PyTorch 1.10."""
    method = entry["method"]
    settings = MemorySettings(
        method="full",
        batch=4 if "bs4" in method else 1,
        sequence=entry["sequence"],
        padding=True,  # BERT of that time added a mask of ones
        base_dtype="fp32",
        attention="eager",
        optimizer="adamw-loop",
        gradient_accumulation=4 if "ga4" in method else 1,
        gradient_checkpointing="ckpt" in method,
    )
    old = OldRuntime(softmax_keeps_input=True, keeps_gradients=True)
    return Case(f"HF docs {method}", "bert-large-uncased", entry["measured"], settings, old, context=1343 * MIB / GIB)


def _fsdp_qlora(entry: dict) -> Case:
    """AnswerDotAI/fsdp_qlora train.py: bf16 adapters, dropout 0.1, outputs kept; transformers 4.38 with its fp32 logits."""
    settings = MemorySettings(
        method="lora",
        rank=64,
        targets="all-linear",
        batch=entry["batch"],
        sequence=entry["sequence"],
        padding=False,
        adapter_dtype="bf16",
        gradient_checkpointing=entry["gradient_checkpointing"],
        quantize="4bit",
        keep_logits=True,
        dropout=0.1,
    )
    return Case("fsdp_qlora QLoRA", "llama-2-7b", entry["measured"], settings, OldRuntime(float_logits=True))


def sharded_cases() -> list[Case]:
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
    entry = {"sequence": 2048, "gradient_checkpointing": True}
    cases = []
    for sharding, batch, quantize, gib in measured:
        case = _fsdp_qlora({**entry, "batch": batch, "measured": gib})
        settings = case.settings.but(quantize=quantize, gpus=2, sharding=sharding)
        name = f"2 GPUs {sharding} {'QLoRA' if quantize else 'LoRA'} batch {batch}"
        cases.append(replace(case, name=name, settings=settings))
    return cases


def zero_cases() -> list[Case]:
    """Llama-2-70B with LoRA in PEFT's guide to DeepSpeed (docs/source/accelerate/deepspeed.md; examples/sft/train.py and its launch
    command): ZeRO-3 over 8 H100, 2048 packed tokens, rank 8 on all linear layers, flash attention, transformers of 2024.

    The figure is the memory of a card ("64 GB (80%)"), so the middle of the usual CUDA context is added to ours; DeepSpeed casts
    the adapters to bf16. Not scored, because they need not be the peak of a step: the QLoRA figures of the same guides on two GPUs
    (36.6 GB ZeRO-3, 35.6 GB FSDP), near the 33.9 GiB that the whole 4-bit model takes while it is loaded, and "72-80 GB" (FSDP).
    """
    settings = MemorySettings(
        method="lora", rank=8, targets="all-linear", batch=8, sequence=2048, padding=False, adapter_dtype="bf16", dropout=0.1,
        gradient_checkpointing=True, gradient_accumulation=4, gpus=8, sharding="zero3",
    )  # fmt: skip
    old, context = OldRuntime(float_logits=True), sum(CONTEXT) / 2 / GIB
    return [Case("8 GPUs zero3 LoRA 70B batch 8", "llama-2-70b", 64.0, settings, old, context=context)]


SOURCES: dict[str, Callable[[dict], Case | None]] = {
    "PEFT method_comparison": _peft,
    "perf_train_gpu_one": _perf_docs,
    "fsdp_qlora": _fsdp_qlora,
    "litgpt": lambda entry: None,  # a model of its own, and no sequence length published: nothing to compute from
}


def ours(case: Case, *, full_trace: bool = False) -> tuple[float, float]:
    """(GiB in the measure of the case, seconds) by this workbench."""
    begun = time.perf_counter()
    settings = case.settings.but(full_trace=full_trace)
    trace = record(case.checkpoint, settings, settings.adapter(case.checkpoint), case.runtime).trace
    if settings.gpus > 1:
        each = 4 if settings.adapter_dtype == "fp32" else 2
        trace = one_gpu(trace, settings.sharding, settings.gpus, trained_dtype_bytes=each)
    found = profile(trace, empty_cache_between_steps=case.empties_cache)
    return found.reserved / GIB + case.context, time.perf_counter() - begun


def _weights(case: Case) -> float:
    """Bytes of the weights as loaded."""
    each = {"fp32": 4, "bf16": 2, "fp16": 2}[case.settings.base_dtype]
    return case.checkpoint.parameters * ({"4bit": 0.5, "8bit": 1}.get(case.settings.quantize, each))


def accelerate_estimate(case: Case) -> float:
    """``accelerate estimate-memory`` (accelerate's own function, called): training with Adam at batch 1, whatever the method."""
    from accelerate.commands.estimate import estimate_training_usage

    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[case.settings.base_dtype]
    return max(estimate_training_usage(case.checkpoint.parameters * 4, dtype).values()) / GIB


def hf_mem(case: Case) -> float:
    """hf-mem 0.5.6 (PyPI): the weights in the precision they are loaded in; it is made for inference."""
    return _weights(case) / GIB


def hf_vram_calc(case: Case) -> float:
    """hf-vram-calc 1.0.9 (PyPI), calculator.py: full = 4 x weights x 1.3; LoRA = (weights + adapter overhead) x 1.2."""
    weights = _weights(case) / GIB
    if case.settings.method == "full":
        return weights * 4.0 * 1.3
    adapter = case.checkpoint.parameters * 0.25 * 2 * (case.settings.rank or 64) / 4096 / 1e9 * 2 * 4.0
    return (weights + adapter) * 1.2


def llama_factory(case: Case) -> float:
    """LLaMA-Factory's README, "Hardware Requirement", for x billion parameters: full 18x GB, LoRA 2x GB, QLoRA x and x/2 GB."""
    billions = case.checkpoint.parameters / 1e9
    if case.settings.method == "full":
        factor = 18.0
    else:
        factor = {"8bit": 1.0, "4bit": 0.5}.get(case.settings.quantize, 2.0)
    return billions * factor * 1e9 / GIB


def alloc_ghost(case: Case) -> float:
    """alloc 0.0.16 (PyPI), ghost.py: weights + fp32 gradients + 12 bytes of Adam + B·S·H·bytes a layer, and 10 %; 8 bytes of Adam
    in fp32. It knows no adapters."""
    parameters = case.checkpoint.parameters
    half = case.settings.base_dtype != "fp32"
    width = CONFIGS[case.model]["hidden_size"]
    layers = max(1, round(parameters / (12 * width**2)))
    tokens = case.settings.batch * case.settings.sequence
    each = 2 if half else 4
    total = parameters * (each + 4 + (12 if half else 8)) + layers * tokens * width * each
    return 1.1 * total / GIB


CALCULATORS: dict[str, Callable[[Case], float]] = {
    "accelerate estimate-memory": accelerate_estimate,
    "hf-mem": hf_mem,
    "hf-vram-calc": hf_vram_calc,
    "LLaMA-Factory table": llama_factory,
    "alloc ghost": alloc_ghost,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=DATA)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--full", action="store_true", help="trace every layer instead of repeating one")
    options = parser.parse_args()
    if not options.data.is_file():
        parser.exit(2, f"There is no file {options.data}; give the path of measured_memory.json.\n")
    rows = []
    for case in read_cases(options.data):
        found, seconds = ours(case, full_trace=options.full)
        others = {name: calculator(case) for name, calculator in CALCULATORS.items()}
        rows.append({"case": case.name, "measured": case.measured, "workbench": found, "seconds": seconds, **others})
    names = ["workbench", *CALCULATORS]
    errors = {name: [row[name] / row["measured"] - 1 for row in rows] for name in names}
    medians = {name: statistics.median(map(abs, values)) for name, values in errors.items()}
    if options.json:
        print(json.dumps({"rows": rows, "median_absolute_error": medians}, indent=1))
        return
    print("| case | measured GiB | " + " | ".join(names) + " | s |")
    print("|---|---|" + "---|" * (len(names) + 1))
    for index, row in enumerate(rows):
        cells = [f"{row[name]:.2f} ({errors[name][index]:+.1%})" for name in names]
        print(f"| {row['case']} | {row['measured']:.2f} | {' | '.join(cells)} | {row['seconds']:.1f} |")
    print("| median absolute error | | " + " | ".join(f"{medians[name]:.1%}" for name in names) + " | |")
    print("| largest absolute error | | " + " | ".join(f"{max(map(abs, errors[name])):.1%}" for name in names) + " | |")
    print("\n| on several GPUs, memory of one | measured GiB | workbench |\n|---|---|---|")
    for case in (*sharded_cases(), *zero_cases()):
        found, _ = ours(case, full_trace=options.full)
        print(f"| {case.name} | {case.measured:.2f} | {found:.2f} ({found / case.measured - 1:+.1%}) |")
    _speed()


def _speed() -> None:
    """A repeated layer against a full trace, LLaMA-3-8B at 2048 tokens."""
    from sample_models import open_model

    checkpoint = open_model("llama-3-8b")
    print(
        "\n| LLaMA-3-8B, 2048 tokens | repeated layer | full trace | allocated differs | reserved differs |\n|---|---|---|---|---|"
    )
    for method, checkpointing in (("lora", False), ("lora-xs", False), ("lora-xs", True), ("full", True)):
        results = []
        for full in (False, True):
            settings = MemorySettings(method=method, sequence=2048, gradient_checkpointing=checkpointing, full_trace=full)
            begun = time.perf_counter()
            trace = record(checkpoint, settings, settings.adapter(checkpoint)).trace
            results.append((profile(trace), time.perf_counter() - begun))
        (few, seconds), (whole, whole_seconds) = results
        print(
            f"| {method}{', checkpointed' if checkpointing else ''} | {seconds:.2f} s | {whole_seconds:.2f} s "
            f"| {few.allocated / whole.allocated - 1:+.4%} | {few.reserved / whole.reserved - 1:+.4%} |"
        )


if __name__ == "__main__":
    main()
