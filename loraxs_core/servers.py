"""What servers make of a LoRA in PEFT's format: the rule by which each scales it, and what each refuses.

Read in their code: PEFT takes alpha / rank with its own patterns (tuners/lora); vLLM one lora_alpha / r for all modules and no
``modules_to_save`` (vllm/lora/peft_helper.py), and a largest rank out of a fixed list (vllm/config/lora.py); llama.cpp
lora_alpha / rank of the tensor (src/llama-adapter.h), and its converter stops at tensors that are no factors, and at Conv1D's
(convert_lora_to_gguf.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes; 16 unless said
VLLM_DEFAULT_RANK = 16


def vllm_scaling(config: Mapping, rank: int) -> float:
    """The factor that vLLM puts before lora_B lora_A of any module. rank: of the module's own tensors, which it does not ask about."""
    return config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])


def llama_cpp_scaling(config: Mapping, rank: int) -> float:
    """The factor that llama.cpp puts before lora_b lora_a of a module whose tensors have this rank."""
    return config["lora_alpha"] / rank


def remarks(folder: Path) -> tuple[str, ...]:
    """What a person who serves the LoRA in `folder` has to know, a sentence each: which readers it is right in, and who refuses it."""
    from loraxs_core.safetensors_file import SafetensorsFile

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    entries = SafetensorsFile(folder / "adapter_model.safetensors").entries
    ranks = {entry.shape[0] for name, entry in entries.items() if name.endswith((".lora_A.weight", ".lora_embedding_A"))}
    whole = sorted({name for name in entries if ".lora_" not in name})
    found = []
    if whole or config.get("modules_to_save"):
        named = ", ".join(config.get("modules_to_save") or whole[:3])
        found.append(
            f"It holds modules saved whole ({named}): PEFT reads it; vLLM refuses an adapter with modules_to_save, and llama.cpp's "
            "converter stops at their tensors. Merging it into the base (loraxs merge) is the way to serve it there."
        )
    elif len(ranks) > 1:
        found.append(
            "Its modules keep their own ranks: right in PEFT and llama.cpp, which divide lora_alpha by the rank of each module; wrong in "
            "servers that use one scale for all (vLLM, LoRAX). Export it with one rank for those."
        )
    else:
        found.append("It has one rank, and lora_alpha equal to it: right in PEFT, vLLM, LoRAX and llama.cpp.")
    largest = max(ranks, default=0)
    if largest > VLLM_RANKS[-1]:
        found.append(f"Its rank {largest} is above {VLLM_RANKS[-1]}, the largest that vLLM takes; merge it for vLLM.")
    elif largest > VLLM_DEFAULT_RANK and not whole:
        found.append(
            f"vLLM takes rank {largest} when started with --max-lora-rank {next(r for r in VLLM_RANKS if r >= largest)}."
        )
    if config.get("fan_in_fan_out"):
        found.append("Its modules are GPT-2's Conv1D, which llama.cpp's converter turns round; merge it for llama.cpp.")
    return tuple(found)
