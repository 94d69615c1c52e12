"""Peaks of a few real training steps: PyTorch's own counters and what nvidia-smi shows, part by part where a moment tells."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tempfile
import time

import torch
from torch import nn

from benchmarks.gpu.models import Workshop, empty, token_ids, trained

STEPS = 3  # the optimizer's states are born in the first


def measure(
    workshop: Workshop,
    *,
    shape: str,
    method: str,
    base: str,
    rank: int,
    batch: int,
    sequence: int,
    checkpointing: bool,
    loop: str,
) -> dict:
    """Bytes and seconds of `STEPS` steps. loop: ``plain`` (AdamW as PyTorch has it, clipped) or ``trainer`` (transformers' own)."""
    device = workshop.device
    model = workshop.model(shape, base, method, rank)
    _checkpoint(model, checkpointing)
    empty(device)
    found = {"trained": sum(parameter.numel() for parameter in trained(model)), "weights": _allocated(device)}
    _reset(device)
    start = time.perf_counter()
    try:
        if loop == "trainer":
            _trainer(model, base, batch, sequence, device)
        else:
            found["optimizer_state"] = _plain(model, base, token_ids(model, batch, sequence))
        _wait(device)
        found["seconds_a_step"] = (time.perf_counter() - start) / STEPS
        found |= _peaks(device)
    finally:
        for parameter in model.parameters():
            parameter.grad = None
        _checkpoint(model, False)
    return found


def autocast(base: str, device: str):
    """Mixed precision where the base says so: bf16 above float32 weights, as Trainer's ``bf16=True``."""
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=base == "autocast")


def _plain(model: nn.Module, base: str, ids: torch.Tensor) -> int:
    """Trains; returns the bytes of the optimizer's states."""
    optimizer = torch.optim.AdamW(trained(model), lr=1e-5)
    for _ in range(STEPS):
        with autocast(base, str(ids.device)):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained(model), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    states = (value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value))
    return sum(value.nbytes for value in states)


def _trainer(model: nn.Module, base: str, batch: int, sequence: int, device: str) -> None:
    from transformers import Trainer, TrainingArguments, default_data_collator

    rows = [{"input_ids": row, "labels": row} for row in token_ids(model, batch * STEPS, sequence).cpu()]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            max_steps=STEPS,
            bf16=base == "autocast",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=device == "cpu",
        )
        with contextlib.redirect_stdout(io.StringIO()):  # its summary of the run
            Trainer(model, arguments, train_dataset=rows, data_collator=default_data_collator).train()


def _checkpoint(model: nn.Module, on: bool) -> None:
    if on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    elif getattr(model, "is_gradient_checkpointing", False):
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()


def _on_card(device: str) -> bool:
    return device.startswith("cuda")


def _wait(device: str) -> None:
    if _on_card(device):
        torch.cuda.synchronize()


def _allocated(device: str) -> int | None:
    return torch.cuda.memory_allocated() if _on_card(device) else None


def _reset(device: str) -> None:
    if _on_card(device):
        torch.cuda.reset_peak_memory_stats()


def _peaks(device: str) -> dict:
    """None for every figure where there is no card: nothing stands in for it."""
    if not _on_card(device):
        return {"peak_allocated": None, "peak_reserved": None, "card": None}
    return {
        "peak_allocated": torch.cuda.max_memory_allocated(),
        "peak_reserved": torch.cuda.max_memory_reserved(),
        "card": _nvidia_smi(),
    }


def _nvidia_smi() -> int | None:
    """Bytes in use on the card as nvidia-smi shows them now; None where it cannot be asked."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={torch.cuda.current_device()}"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
