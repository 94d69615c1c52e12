"""Public calculators of GPU memory, asked about the publicly measured fine-tunes of `benchmarks.memory_cases`.

A calculator is a function of a case that gives GiB. Where its own function can be called it is; the others are evaluated from their
published formulas, which are cited. Most of them were not made for these questions.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from analyzers.memory.settings import own_dtype
from analyzers.units import GIB
from benchmarks.memory_cases import Case
from loraxs_core.architecture import model_config


def _weights(case: Case) -> float:
    """Bytes of the weights as loaded."""
    each = {"fp32": 4, "bf16": 2, "fp16": 2}[_dtype(case)]
    return case.checkpoint.parameters * ({"4bit": 0.5, "8bit": 1}.get(case.settings.quantize, each))


def accelerate_estimate(case: Case) -> float:
    """``accelerate estimate-memory`` (accelerate's own function, called): training with Adam at batch 1, whatever the method."""
    from accelerate.commands.estimate import estimate_training_usage

    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[_dtype(case)]
    return max(estimate_training_usage(case.checkpoint.parameters * 4, dtype).values()) / GIB


def hf_mem(case: Case) -> float:
    """hf-mem 0.5.6 (PyPI): the weights in the precision they are loaded in; it is made for inference."""
    return _weights(case) / GIB


def hf_vram_calc(case: Case) -> float:
    """hf-vram-calc 1.0.9 (PyPI), calculator.py: full = 4 x weights x 1.3; LoRA = (weights + adapter overhead) x 1.2."""
    weights = _weights(case) / GIB
    if case.settings.method == "full":
        return weights * 4.0 * 1.3
    adapter = case.checkpoint.parameters * 0.25 * 2 * _rank(case) / 4096 / 1e9 * 2 * 4.0
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
    half = _dtype(case) != "fp32"
    width = case.checkpoint.config["hidden_size"]
    layers = max(1, round(parameters / (12 * width**2)))
    tokens = case.settings.batch * case.settings.sequence
    each = 2 if half else 4
    total = parameters * (each + 4 + (12 if half else 8)) + layers * tokens * width * each
    return 1.1 * total / GIB


def deepspeed_zero3(case: Case) -> float:
    """DeepSpeed's `estimate_zero3_model_states_mem_needs` (runtime/zero/stage3.py) without offload, its closed form: 18 bytes a number
    over the GPUs and the largest layer gathered; states of a full fine-tune, no activations."""
    parameters = case.checkpoint.parameters
    largest = max(weight.parameters for weight in case.checkpoint.weights)
    return (4 * largest + 18 * parameters / case.settings.gpus) / GIB


def transformer_math(case: Case) -> float:
    """EleutherAI, "Transformer Math 101" (blog.eleuther.ai/transformer-math), its sum for training: weights as loaded, 12 bytes of AdamW
    and a gradient in the precision of training for each trained number, activations s·b·h·L·(10 + 24 + 5·a·s/h), or 2·s·b·h·L with
    checkpointing; ZeRO-3 (FSDP) shares all but the activations."""
    config, settings = case.checkpoint.config, case.settings
    layers, width, heads = (int(config[key]) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    one_layer = settings.sequence * settings.batch * width
    activations = layers * one_layer * (2 if settings.gradient_checkpointing else 34 + 5 * heads * settings.sequence / width)
    trained = _trained(case)
    states = _weights(case) + trained * (12 + (4 if _dtype(case) == "fp32" else 2))
    shared = settings.gpus if settings.sharding in ("fsdp", "zero3") else 1
    return (states / shared + activations) / GIB


def qmemcalc(case: Case) -> float:
    """qmemcalc 0.1.1 (PyPI), memory.py: 4·h²·L weights in their precision and 5 MB; for 2·h·r·L adapter numbers 2 bytes of weights, 2 of
    gradients and 8 of optimizer; b·s·h·L·2 bytes of activations, halved by checkpointing; a tenth of weights and activations on top."""
    config, settings = case.checkpoint.config, case.settings
    width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    each = {"4bit": 0.5, "8bit": 1.0}.get(settings.quantize or "", 4 if _dtype(case) == "fp32" else 2)
    weights = 4 * width**2 * layers * each + 5e6
    adapter = 2 * width * _rank(case) * layers if settings.trains_adapter else 0
    activations = settings.batch * settings.sequence * width * layers * 2 * (0.5 if settings.gradient_checkpointing else 1)
    return (1.1 * (weights + activations) + adapter * 12) / GIB


def unsloth(module: ModuleType) -> Callable[[Case], float]:
    """Unsloth's own estimator, called. module: `studio/backend/utils/hardware/vram_estimation.py` of its wheel, as it was loaded. It has
    no fp32, no 8 bit and no mixture of full weights and LoRA's other targets: what it has nearest is asked."""

    def estimate(case: Case) -> float:
        settings = case.settings
        method = "full" if not settings.trains_adapter else "qlora" if settings.quantize == "4bit" else "lora"
        config = module.TrainingVramConfig(
            training_method=method,
            batch_size=settings.batch,
            max_seq_length=settings.sequence,
            lora_rank=_rank(case),
            target_modules=list((settings.peft_config or {}).get("target_modules") or module.DEFAULT_TARGET_MODULES),
            gradient_checkpointing="true" if settings.gradient_checkpointing else "none",
            optimizer="adamw_torch",
            load_in_4bit=method == "qlora",
            attention_implementation="eager" if settings.attention == "eager" else "sdpa",
        )
        found = module.estimate_training_vram(module.extract_arch_config(model_config(case.checkpoint)), config)
        spread = settings.gpus if settings.sharding in ("fsdp", "zero3") else 1
        return found.min_gpu_vram(spread) / GIB

    return estimate


def load_unsloth(file: Path) -> Callable[[Case], float]:
    """`unsloth` of the module in `file`."""
    spec = importlib.util.spec_from_file_location("unsloths_vram_estimation", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return unsloth(module)


def _trained(case: Case) -> float:
    """Trained numbers: all, or those of a LoRA of the case's rank on its targets."""
    if not case.settings.trains_adapter:
        return case.checkpoint.parameters
    targets = (case.settings.peft_config or {}).get("target_modules") or ()
    adapted = [one for one in case.checkpoint.linear if any(one.name.endswith((f"{end}.weight", end)) for end in targets)]
    return sum(_rank(case) * sum(one.shape) for one in adapted or case.checkpoint.linear)


CALCULATORS: dict[str, Callable[[Case], float]] = {
    "accelerate estimate-memory": accelerate_estimate,
    "hf-mem": hf_mem,
    "hf-vram-calc": hf_vram_calc,
    "LLaMA-Factory table": llama_factory,
    "alloc ghost": alloc_ghost,
    "DeepSpeed ZeRO-3 estimator": deepspeed_zero3,
    "Transformer Math 101": transformer_math,
    "qmemcalc": qmemcalc,
}


def _dtype(case: Case) -> str:
    return case.settings.base_dtype or own_dtype(case.checkpoint)


def _rank(case: Case) -> int:
    config = case.settings.peft_config or {}
    return int(config.get("r") or case.settings.rank or 64)
