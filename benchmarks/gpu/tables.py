"""The measurements of a folder as tables, memory beside the estimates of the same settings; and which are still empty."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from analyzers.memory import MemorySettings, estimate_memory
from analyzers.units import GIB, MIB
from benchmarks.gpu.items import items
from benchmarks.gpu.models import TARGETS, checkpoint
from benchmarks.gpu.worker import result_file

STEPS_OF_A_RUN = 1000  # of which the SVD's share is given


def print_tables(folder: Path, size: str) -> int:
    """Prints every table; 0 when something was measured."""
    found = read(folder, size)
    machine = folder / "machine.json"
    if machine.exists():
        facts = json.loads(machine.read_text(encoding="utf-8"))
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        print(f"{facts.get('card', 'no card')}, {facts['processor']}, {facts['cores']} cores, {facts['date']}\n{versions}\n")
    empty = []
    for title, table in TABLES.items():
        rows = list(table(found))
        if not rows:
            empty.append(title)
            continue
        print(f"## {title}\n")
        for row in rows:
            print("| " + " | ".join(row) + " |")
            if row is rows[0]:
                print("|" + "---|" * len(row))
        print()
    for entry in found.values():
        for word in ("failed", "out_of_memory", "skipped"):
            if word in entry:
                print(f"{entry['id']}: {word.replace('_', ' ')}: {entry[word]}")
    if empty:
        print("Still empty: " + "; ".join(empty) + ".")
    missing = sum(item.id not in found for item in items(size))
    print(f"{len(found)} measurements, {missing} not made yet.")
    return 0 if found else 1


def read(folder: Path, size: str) -> dict[str, dict]:
    """id -> what the file of each measurement says, in the order of `items`."""
    files = ((item.id, result_file(folder, item)) for item in items(size))
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files if file.exists()}


def settings_of(arguments: dict) -> MemorySettings:
    """What the estimator is asked for a measured memory item: what its loop really does."""
    mixed = arguments["base"] == "autocast"
    vera = arguments["method"] == "vera"
    return MemorySettings(
        method=arguments["method"],
        rank=None if vera else arguments["rank"],
        targets=TARGETS,
        batch=arguments["batch"],
        sequence=arguments["sequence"],
        padding=False,
        base_dtype="fp32" if mixed else "bf16",
        adapter_dtype="bf16" if arguments["method"] == "head-only" and not mixed else "fp32",
        mixed_precision=mixed,
        gradient_checkpointing=arguments["checkpointing"],
        quantize=arguments["base"] if arguments["base"] in ("4bit", "8bit") else None,
        optimizer="adamw-fused" if arguments["loop"] == "trainer" else "adamw",
        task="causal-lm",
        options={"vectors": "random"} if arguments["method"] == "lora-xs" else {},
    )


def _measured(found: dict[str, dict], room: str, **arguments) -> Iterable[dict]:
    for entry in found.values():
        if entry["room"] == room and "result" in entry and arguments.items() <= entry["arguments"].items():
            yield entry


def _memory(found: dict[str, dict]) -> Iterable[list[str]]:
    rows, off, inside = [], [], 0
    for entry in _measured(found, "memory"):
        measured, arguments = entry["result"], entry["arguments"]
        if measured["peak_allocated"] is None:
            continue
        estimate = estimate_memory(checkpoint(arguments["shape"]), settings_of(arguments))
        error = estimate.peak_allocated / measured["peak_allocated"] - 1
        held = estimate.interval[0] <= measured["peak_reserved"] <= estimate.interval[1]
        off.append(abs(error))
        inside += held
        rows.append(
            [
                entry["id"].removeprefix("memory-"),
                f"{measured['peak_allocated'] / GIB:.2f}",
                f"{estimate.peak_allocated / GIB:.2f}",
                f"{error:+.1%}",
                f"{measured['peak_reserved'] / GIB:.2f}",
                f"{estimate.interval[0] / GIB:.2f}–{estimate.interval[1] / GIB:.2f}{'' if held else ' (outside)'}",
                "" if measured["card"] is None else f"{measured['card'] / GIB:.2f}",
                f"{measured['weights'] / GIB:.2f} / {estimate.breakdown['weights'] / GIB:.2f}",
            ]
        )
    if not rows:
        return []
    head = "settings, allocated GiB, estimated, error, reserved GiB, interval, nvidia-smi GiB, weights measured / estimated"
    last = [
        f"median of {len(rows)}",
        "",
        "",
        f"{statistics.median(off):.1%}, worst {max(off):.1%}",
        "",
        f"{inside} inside",
        "",
        "",
    ]
    return [head.split(", "), *rows, last]


def _steps(found: dict[str, dict]) -> Iterable[list[str]]:
    rows = []
    for entry in _measured(found, "tuner", what="step"):
        result, about = entry["result"], entry["arguments"]
        other = next(iter(_measured(found, "tuner", **{**about, "method": "lora"})), None)
        ratio = f"{result['seconds'] / other['result']['seconds']:.2f}" if other else ""
        kept = "" if result["kept"] is None else f"{result['kept'] / MIB:,.1f}"
        how = "compiled" if about["compiled"] else "eager"
        rows.append([f"{about['shape']} {about['base']} {about['method']} {how}", f"{result['seconds']:.4f}", ratio, kept])
    return [["step", "seconds", "of LoRA's", "kept for backward MiB"], *rows] if rows else []


def _start(found: dict[str, dict]) -> Iterable[list[str]]:
    rows = []
    for entry in _measured(found, "tuner", what="start"):
        shape, seconds = entry["arguments"]["shape"], entry["result"]["seconds"]
        steps = [
            step["result"]["seconds"]
            for step in _measured(found, "tuner", what="step", shape=shape, base="bf16", method="lora-xs", compiled=False)
        ]
        share = f"{seconds['lora-xs'] / (seconds['lora-xs'] + STEPS_OF_A_RUN * steps[0]):.2%}" if steps else "no step measured"
        rows.append([shape, *(f"{seconds[method]:.1f}" for method in ("lora-xs", "lora", "vera")), share])
    return [["model", "LoRA-XS s", "LoRA s", "VeRA s", f"SVD's share of {STEPS_OF_A_RUN:,} steps"], *rows] if rows else []


def _reload(found: dict[str, dict]) -> Iterable[list[str]]:
    rows = [
        [entry["arguments"]["shape"], str(entry["result"]["modules"]), f"{entry['result']['worst_error_of_dw']:.1e}"]
        for entry in _measured(found, "tuner", what="reload")
    ]
    return [["model", "modules", "worst relative error of ΔW on the CPU"], *rows] if rows else []


def _mixed(found: dict[str, dict]) -> Iterable[list[str]]:
    rows = []
    for entry in _measured(found, "tuner", what="mixed_batch"):
        result = entry["result"]
        for count, share in result["throughput_of_base"].items():
            rows.append([entry["arguments"]["shape"], count, str(result["rows"]), f"{share:.1%}"])
    return [["model", "adapters in the batch", "rows", "throughput of the base model's"], *rows] if rows else []


def _spectra(found: dict[str, dict]) -> Iterable[list[str]]:
    rows = []
    for entry in _measured(found, "spectra"):
        for way, result in entry["result"]["ways"].items():
            error = f"{result['error']:.0e}" if "error" in result else "reference"
            peak = f"{result['peak'] / MIB:,.0f}" if result.get("peak") else ""
            rows.append([entry["arguments"]["shape"], way, f"{result['seconds']:.2f}", error, peak])
    return [["layer of", "way", "seconds", "error of σ1", "peak on the device MiB"], *rows] if rows else []


def _race(found: dict[str, dict]) -> Iterable[list[str]]:
    rows = []
    for entry in _measured(found, "race"):
        for row in entry["result"]["rows"]:
            score = f"{row['score']:.3f} ({row['low']:.3f}–{row['high']:.3f}, {row['seeds']} seeds)"
            rows.append([row["label"], row["metric"], score, f"{row['parameters']:,}", f"{row['seconds']:.0f}"])
    return [["method", "metric", "score", "trained numbers", "seconds"], *rows] if rows else []


TABLES: dict[str, Callable[[dict[str, dict]], Iterable[list[str]]]] = {
    "GPU memory": _memory,
    "Training steps": _steps,
    "Start, and the SVD's share of a run": _start,
    "Reloading an adapter of the card on the CPU": _reload,
    "Many adapters in a batch": _mixed,
    "Spectra": _spectra,
    "A race on the card": _race,
}
