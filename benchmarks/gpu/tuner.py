"""LoRA-XS beside LoRA and VeRA: the start, a step, what is kept for backward, reloading on the card, many adapters in a batch."""

from __future__ import annotations

import os
import statistics
import tempfile
import time

import torch
from peft import PeftModel

from benchmarks.gpu.memory import autocast
from benchmarks.gpu.models import Workshop, adapted, base_model, token_ids, trained
from benchmarks.tuner_activations import kept_bytes
from loraxs_core.tuner import LoraXSConfig

REPEATS = 10


def measure(workshop: Workshop, *, what: str, **arguments) -> dict:
    return WHAT[what](workshop, **arguments)


def start(workshop: Workshop, *, shape: str, base: str, rank: int) -> dict:
    """Seconds to add each method's adapter to a model that is there; LoRA-XS with exact bases, its disk cache empty."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        kept, os.environ["LORAXS_CACHE"] = os.environ.get("LORAXS_CACHE"), folder
        try:
            for method in ("lora-xs", "lora", "vera"):
                workshop.clear()
                model = workshop.model(shape, base)
                begun = time.perf_counter()
                adapted(model, method, rank, exact=True)
                _wait(workshop.device)
                seconds[method] = time.perf_counter() - begun
        finally:
            workshop.clear()
            os.environ.pop("LORAXS_CACHE")
            if kept is not None:
                os.environ["LORAXS_CACHE"] = kept
    return {"seconds": seconds, "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()}


def step(
    workshop: Workshop, *, shape: str, base: str, method: str, rank: int, batch: int, sequence: int, compiled: bool
) -> dict:
    """Median seconds of a whole training step, and the bytes that autograd keeps between forward and backward."""
    model = workshop.model(shape, base, method, rank)
    ids = token_ids(model, batch, sequence)
    optimizer = torch.optim.AdamW(trained(model), lr=1e-5)
    run = torch.compile(model) if compiled else model
    kept = None if compiled else kept_bytes(model, lambda: model(input_ids=ids, labels=ids).loss)
    times, warm_up = [], 0.0
    for index in range(REPEATS + 1):
        begun = time.perf_counter()
        with autocast(base, str(ids.device)):
            loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(workshop.device)
        times.append(time.perf_counter() - begun)
        if index == 0:
            warm_up = times.pop()  # kernels are chosen, or compiled, in the first
    if compiled:
        torch._dynamo.reset()
    return {"seconds": statistics.median(times), "fastest": min(times), "slowest": max(times), "first": warm_up, "kept": kept}


def reload(workshop: Workshop, *, shape: str, rank: int) -> dict:
    """An adapter of the device, saved, and loaded on the CPU's copy of the weights: verified there, and its updates compared."""
    model = base_model(shape, "bf16", workshop.device)
    same = base_model(shape, "bf16", "cpu")
    same.load_state_dict({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    here = adapted(model, "lora-xs", rank, exact=True)
    with torch.no_grad():
        for parameter in trained(here):
            parameter.normal_(0, 0.1)
    with tempfile.TemporaryDirectory() as folder:
        here.save_pretrained(folder)
        there = PeftModel.from_pretrained(same, folder)
    layers = {name: module for name, module in there.named_modules() if hasattr(module, "loraxs_R")}
    worst = 0.0
    for name, module in layers.items():
        mine, theirs = (
            layer.get_delta_weight("default").detach().cpu().double() for layer in (here.get_submodule(name), module)
        )
        worst = max(worst, float((theirs - mine).norm() / mine.norm()))
    return {"modules": len(layers), "worst_error_of_dw": worst}


def mixed_batch(workshop: Workshop, *, shape: str, adapters: tuple[int, ...], sequence: int = 16) -> dict:
    """Rows a second of a forward pass with so many distinct adapters in the batch, beside the base model on the same batch."""
    workshop.clear()
    model = adapted(base_model(shape, "bf16", workshop.device), "lora-xs", 16).eval()
    config: LoraXSConfig = model.peft_config["default"]
    rows = max(64, max(adapters)) if workshop.device != "cpu" else max(adapters)
    ids = token_ids(model, rows, sequence)
    seconds: dict[str, float] = {}
    with torch.no_grad():
        with model.disable_adapter():
            seconds["base"] = _median(workshop.device, lambda: model(input_ids=ids))
        names = ["default"]
        loading = []
        for count in adapters:
            while len(names) < count:
                begun = time.perf_counter()
                model.add_adapter(f"a{len(names)}", config)
                loading.append(time.perf_counter() - begun)
                names.append(f"a{len(names)}")
            chosen = [names[row % count] for row in range(rows)]
            seconds[str(count)] = _median(workshop.device, lambda chosen=chosen: model(input_ids=ids, adapter_names=chosen))
    share = {count: seconds["base"] / value for count, value in seconds.items() if count != "base"}
    return {
        "rows": rows,
        "seconds": seconds,
        "throughput_of_base": share,
        "adding_first": loading[0] if loading else None,
        "adding_last": loading[-1] if loading else None,
    }


WHAT = {"start": start, "step": step, "reload": reload, "mixed_batch": mixed_batch}


def _median(device: str, run) -> float:
    times = []
    for index in range(REPEATS + 2):
        begun = time.perf_counter()
        run()
        _wait(device)
        if index > 1:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
