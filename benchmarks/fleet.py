"""A store of adapters at the size of a fleet: what it takes, how fast it answers, what it serves, and whether damage is ever silent.

    python -m benchmarks.fleet [--adapters 100000] [--folder DIR] [--json FILE] [--only store|compact|serve|flips]

The store: adapters of LLaMA-3-8B's shape, rank 16 on all linear layers in bfloat16 (224 matrices, 114,688 bytes each), random numbers, as
many as asked for but at most half of what the disk has free. Access is Zipf's (exponent 1.1 over shuffled names). A get reads the row and checks it.
The same gets run twice; the second round is the warm one. Serving: MiniLM, rank 16 on its 36 matrices, batches of 16 rows of 64 tokens named by
Zipf's law, ten times more adapters than stay resident; the base's forward takes turns with it. Flips: one bit at a time, anywhere in the
file of a store of 100 of the same adapters; counted is what `verify` says, and where it says nothing every row is compared with what was put.
Compaction: a tenth of the adapters, every second of them put twice; `collect(keep=1)` deletes the old versions, writes the file anew, reads and
checks all of it and puts it in the old one's place; every row is then compared with what was put.
The folder is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from loraxs_core.bases import Identity
from loraxs_core.proof import Proof, Record, encode, sketch_rows
from loraxs_core.store import AdapterStore, collect, templates, verify
from loraxs_core.store.plans import Plan, planned

RANK, EXPONENT = 16, 1.1
PROJECTIONS = (*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down")))
ROWS, TOKENS, BATCHES, RESIDENT = 16, 64, 60, 32


def llama_plan() -> tuple[Plan, dict[str, bytes]]:
    """The plan of a rank-16 adapter on all linear layers of LLaMA-3-8B; its proof speaks of no real weights."""
    names = [f"model.layers.{layer}.{name}" for layer in range(32) for name in PROJECTIONS]
    tensors = {f"base_model.model.{name}.loraxs_R": torch.zeros(RANK, RANK, dtype=torch.bfloat16) for name in names}
    random = np.random.default_rng(1)
    records = {}
    for name in names:
        identity = Identity(*(int(number) for number in random.integers(0, 1 << 32, 3)))
        records[name] = Record(identity, 0, random.standard_normal((sketch_rows(RANK), RANK)).astype(np.float32))
    tensors[f"base_model.model.{min(names)}.loraxs_proof"] = torch.from_numpy(encode(Proof(1, 0, False, records)))
    config = {"peft_type": "LORAXS", "r": RANK, "save_dtype": "bfloat16", "target_modules": names}
    key = next(key for key in tensors if key.endswith("loraxs_proof"))
    ranks = dict.fromkeys(names, RANK)
    cores = {name: tensors[f"base_model.model.{name}.loraxs_R"] for name in names}
    tensors[key] = templates.filled(templates.emptied(tensors[key], ranks), ranks, cores, {})
    plan, shared = planned(config, tensors)
    if plan.proof_key is None:
        raise SystemExit("The plan of the benchmark holds its proof in every row; its layout is not what the store knows.")
    return plan, shared


def row(plan: Plan, index: int) -> bytes:
    return np.random.default_rng(index).bytes(plan.row_bytes)


def zipf(count: int, draws: int, seed: int) -> np.ndarray:
    """`draws` indices below `count`, the more often the lower a shuffled rank."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, count + 1) ** EXPONENT
    return random.permutation(count)[random.choice(count, draws, p=weights / weights.sum())]


def timed_gets(store: AdapterStore, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of every get: by the clock, and of processor time, which other programs on the machine add nothing to."""
    taken, spent = np.empty(len(names)), np.empty(len(names))
    for at, name in enumerate(names):
        begun, busy = time.perf_counter(), time.thread_time()
        store.get(name)
        taken[at], spent[at] = 1e3 * (time.perf_counter() - begun), 1e3 * (time.thread_time() - busy)
    return taken, spent


def measure_store(root: Path, wanted: int) -> dict:
    plan, shared = llama_plan()
    count = min(wanted, int(shutil.disk_usage(root).free / 2 // plan.row_bytes))
    print(
        f"{count:,} adapters of {plan.row_bytes:,} bytes ({count * plan.row_bytes / 1e9:.2f} GB), {wanted:,} asked for",
        flush=True,
    )
    store = AdapterStore.create(root / "store")

    def rows() -> Iterator[tuple[str, Plan, dict[str, bytes], bytes]]:
        for index in range(count):
            yield f"user-{index:06}", plan, shared, row(plan, index)

    begun = time.perf_counter()
    store.put_rows(rows())
    put_seconds = time.perf_counter() - begun
    space = store.space()
    singles = []
    for index in range(200):
        numbers = row(plan, count + index)
        begun = time.perf_counter()
        store.put_rows([(f"user-{index:06}", plan, shared, numbers)])
        singles.append(1e3 * (time.perf_counter() - begun))
    names = [f"user-{index:06}" for index in zipf(count, 20_000, 2)]
    print("gets", flush=True)
    (first, _), (warm, spent) = timed_gets(store, names), timed_gets(store, names)
    print("verify", flush=True)
    begun = time.perf_counter()
    report = verify(store)
    verify_seconds = time.perf_counter() - begun
    if not report.sound:
        raise SystemExit(f"The store is not sound: {report}")
    begun = time.perf_counter()
    gone = collect(store, keep=1, compact=False)
    gc_seconds = time.perf_counter() - begun
    return {
        "adapters": count,
        "row_bytes": plan.row_bytes,
        "numbers_bytes": space.numbers,
        "file_bytes": space.file,
        "overhead": (space.file - space.numbers) / space.numbers,
        "put_many_per_second": count / put_seconds,
        "put_one_ms_median": statistics.median(singles),
        "put_one_ms_p99": float(np.percentile(singles, 99)),
        "get_first_ms_p50": float(np.percentile(first, 50)),
        "get_first_ms_p99": float(np.percentile(first, 99)),
        "get_warm_ms_p50": float(np.percentile(warm, 50)),
        "get_warm_ms_p99": float(np.percentile(warm, 99)),
        "get_warm_processor_ms_p99": float(np.percentile(spent, 99)),
        "verify_gb_per_second": report.bytes / verify_seconds / 1e9,
        "gc_seconds": gc_seconds,
        "gc_versions": gone.versions,
    }


def measure_compaction(root: Path, wanted: int) -> dict:
    plan, shared = llama_plan()
    count = min(wanted // 10, int(shutil.disk_usage(root).free / 4 // plan.row_bytes))
    store = AdapterStore.create(root / "compact")
    store.put_rows((f"user-{index:06}", plan, shared, row(plan, index)) for index in range(count))
    store.put_rows((f"user-{index:06}", plan, shared, row(plan, count + index)) for index in range(0, count, 2))
    begun, busy = time.perf_counter(), time.process_time()
    gone = collect(store, keep=1)
    seconds, spent = time.perf_counter() - begun, time.process_time() - busy
    for index in range(count):
        if bytes(store.get(f"user-{index:06}").row) != row(plan, index if index % 2 else count + index):
            raise SystemExit(f"user-{index:06} is not what was put.")
    return {
        "adapters": count,
        "versions_removed": gone.versions,
        "gb_before": (store.space().file + gone.bytes) / 1e9,
        "gb_after": store.space().file / 1e9,
        "seconds": seconds,
        "processor_seconds": spent,
    }


def measure_flips(root: Path, flips: int = 1000) -> dict:
    plan, shared = llama_plan()
    store = AdapterStore.create(root / "flips")
    truth = {f"user-{index:03}": row(plan, index) for index in range(100)}
    store.put_rows((name, plan, shared, numbers) for name, numbers in truth.items())
    collect(store)
    path = store.folder / store.files.marker().file
    random = np.random.default_rng(3)
    named = structure = harmless = silent = 0
    for position, bit in zip(random.integers(0, path.stat().st_size, flips), random.integers(0, 8, flips), strict=True):
        _flip(path, int(position), int(bit))
        report = verify(store)
        if report.damaged:
            named += 1
        elif report.file:
            structure += 1
        elif store.names() == sorted(truth) and all(bytes(store.get(name).row) == numbers for name, numbers in truth.items()):
            harmless += 1
        else:
            silent += 1
        _flip(path, int(position), int(bit))
    if not verify(store).sound:
        raise SystemExit("The store did not come back after the flips.")
    return {"flips": flips, "named": named, "file": structure, "in_bytes_that_hold_nothing": harmless, "silent": silent}


def _flip(path: Path, position: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def measure_serving(root: Path) -> dict:
    from peft import get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModel

    from loraxs_core.tuner import LoraXSConfig
    from sample_models import open_model

    folder = open_model("minilm").folder
    base = AutoModel.from_pretrained(folder).eval()
    template = get_peft_model(
        AutoModel.from_pretrained(folder), LoraXSConfig(r=RANK, target_modules="all-linear", save_dtype="bfloat16")
    )
    template.save_pretrained(root / "template")
    plan, shared = planned(
        json.loads((root / "template" / "adapter_config.json").read_text()),
        load_file(root / "template" / "adapter_model.safetensors"),
    )
    count = 10 * RESIDENT
    store = AdapterStore.create(root / "serving")
    generator = torch.Generator().manual_seed(0)
    cores = [(0.05 * torch.randn(plan.row_bytes // 2, generator=generator)).to(torch.bfloat16) for _ in range(count)]
    store.put_rows(
        (f"user-{index}", plan, shared, core.view(torch.uint8).numpy().tobytes()) for index, core in enumerate(cores)
    )
    served = store.attach(AutoModel.from_pretrained(folder), resident=RESIDENT)
    ids = torch.randint(0, base.config.vocab_size, (ROWS, TOKENS), generator=generator)
    choices = zipf(count, BATCHES * ROWS, 4).reshape(BATCHES, ROWS)
    plain, mixed, loads, misses = [], [], [], 0
    with torch.inference_mode():
        for chosen in choices:
            names = [f"user-{index}" for index in chosen]
            begun = time.perf_counter()
            base(ids)
            plain.append(time.perf_counter() - begun)
            before = set(served.resident)
            begun = time.perf_counter()
            served.load(names)
            load = time.perf_counter() - begun
            fresh = len(set(served.resident) - before)
            if len(before) == RESIDENT and fresh:  # the bank is full: every load is one that gives way
                loads.append(1e3 * load / fresh)
            misses += fresh
            begun = time.perf_counter()
            together = served(ids, adapters=names).last_hidden_state
            mixed.append(time.perf_counter() - begun)
        alone = torch.cat([served(ids[at : at + 1], adapters=[name]).last_hidden_state for at, name in enumerate(names)])
    return {
        "adapters": count,
        "resident": RESIDENT,
        "rows_in_a_batch": ROWS,
        "base_ms": 1e3 * statistics.median(plain),
        "served_ms": 1e3 * statistics.median(mixed),
        "load_one_ms": statistics.median(loads),
        "loads_in_100_rows": 100 * misses / (BATCHES * ROWS),
        "largest_difference_to_one_by_one": float((together - alone).abs().max()),
        "largest_difference_to_the_base": float((together - base(ids).last_hidden_state).abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where there is room; a temporary folder when left out")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--only", choices=("store", "compact", "serve", "flips"))
    asked = parser.parse_args()
    parts = {
        "store": lambda root: measure_store(root, asked.adapters),
        "compact": lambda root: measure_compaction(root, asked.adapters),
        "flips": measure_flips,
        "serve": measure_serving,
    }
    figures = {}
    for name, measure in parts.items():
        if asked.only in (None, name):
            with tempfile.TemporaryDirectory(dir=asked.folder) as root:
                figures[name] = measure(Path(root))
            print(name, *(f"  {what} {value:,.4g}" for what, value in figures[name].items()), sep="\n", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
