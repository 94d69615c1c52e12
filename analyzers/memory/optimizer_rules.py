"""Which optimizers go with which other settings, as transformers, TRL and the optimizers' own libraries have it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from analyzers.optimizers import IN_BACKWARD, LOW_RANK, NOT_ON_CUDA, OPTIMIZERS
from loraxs_core.errors import SettingsError

TORCHAO = "adamw-torchao"
WITH_ARGUMENTS = (*LOW_RANK, "sgd", "rmsprop", *(name for name in OPTIMIZERS if name.startswith(TORCHAO)))  # that decide memory


def check_optimizer(name: str, optim_args: str, *, accumulation: int, gpus: int, sharding: str | None, offloaded: bool) -> None:
    """Raises SettingsError, in one sentence, where transformers' Trainer would not start or the step is not known here."""
    deciding_arguments(name, parse_arguments(optim_args))
    if name in LOW_RANK:
        projected_rank(optim_args)
    underscored = name.replace("-", "_")
    if underscored in NOT_ON_CUDA:
        raise SettingsError(f"{underscored} {NOT_ON_CUDA[underscored]}.")
    layerwise = name.endswith("layerwise")
    if layerwise and accumulation > 1:
        raise SettingsError(
            f"{name} updates each weight in the backward pass, so gradients cannot accumulate; leave gradient accumulation at 1."
        )
    if layerwise and gpus > 1:
        raise SettingsError(
            f"{name} runs on one GPU only: transformers has no layer-wise optimizer for several; choose another."
        )
    if sharding in ("zero2", "zero3", "fsdp") and name in (*LOW_RANK, *IN_BACKWARD):
        raise SettingsError(
            f"{name} works on whole matrices, which {sharding} spreads over GPUs; choose ddp or another optimizer."
        )
    if offloaded and name in IN_BACKWARD:
        raise SettingsError(f"{name} updates weights in the backward pass on the GPU; leave offload optimizer out.")


def parse_arguments(text: str) -> dict[str, str]:
    """``TrainingArguments.optim_args``, such as ``rank=64, scale=0.1``, as transformers reads it. Raises SettingsError for what is none."""
    try:
        return dict(one.split("=") for one in text.replace(" ", "").split(",")) if text.strip() else {}
    except ValueError:
        raise SettingsError(f"optim args are pairs such as 'rank=64, update_proj_gap=200', not {text!r}.") from None


def projected_rank(optim_args: str) -> int:
    """The rank that GaLore and APOLLO project to; transformers' own is 128. Raises SettingsError for what is none."""
    said = parse_arguments(optim_args).get("rank", "128")
    if not said.isdigit() or int(said) < 1:
        raise SettingsError(f"the rank in optim args must be a whole number of at least 1, not {said!r}.")
    return int(said)


def deciding_arguments(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """What decides memory among the arguments that transformers hands on to PyTorch's own optimizers and to torchao's. Raises
    SettingsError for a value that is none."""
    if name in ("sgd", "rmsprop") and _number(given, "momentum", 0.0):
        return {"momentum": _number(given, "momentum", 0.0)}
    if name == "rmsprop" and given.get("centered", "").lower() in ("true", "1", "yes"):
        return {"centered": True}
    if name.startswith(TORCHAO) and "block_size" in given:
        block = _number(given, "block_size", 0.0)
        if block < 1 or block != int(block):
            raise SettingsError(
                f"the block size in optim args must be a whole number of at least 1, not {given['block_size']!r}."
            )
        return {"block": int(block)}
    return {}


def _number(given: Mapping[str, str], name: str, otherwise: float) -> float:
    said = given.get(name, str(otherwise))
    try:
        value = float(said)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise SettingsError(f"the {name.replace('_', ' ')} in optim args must be a number of at least 0, not {said!r}.")
    return value
