"""A batch of many adapters: what it costs beside the base model, beside PEFT's LoRA, and what loading one more adapter costs.

    python -m benchmarks.mixed_batch [--rows 64] [--length 16] [--rank 16] [--adapters 1,8,64] [--repeats 9] [--loads 240] [--no-lora]

MiniLM, the paper's four kinds of layers; CPU time of one thread. In every round all cases take their turn, and what is given is the median
over the rounds of the round's ratio to the base model, which is given the same batch, so that what else runs on the machine falls on all
alike; milliseconds are those of the fastest round. Where there are more adapters than rows, there are as many rows as adapters. "Bare
products" is the base model with nothing added but one adapter's three products in every module, x A^T, times R, times B^T onto the base's
result, into memory that is there: what rank r costs with this BLAS however it is served. The largest difference is that of the mixed batch
to rows alone, each with its own adapter. The last lines are what PEFT's calls cost with few and with many adapters resident.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel

from loraxs_core.tuner import LoraXSConfig
from sample_models import open_model

TARGETS = ["query", "value", "attention.output.dense", "output.dense"]


def built(config: Callable[[], object], count: int, folder: str) -> PeftModel:
    """MiniLM with `count` adapters a0, a1, … whose numbers do something."""
    model = get_peft_model(AutoModel.from_pretrained(folder), config(), adapter_name="a0")
    for index in range(1, count):
        model.add_adapter(f"a{index}", config())
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "loraxs_R" in name or "lora_B" in name:
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def keep_freed_memory() -> None:
    """Has glibc keep what is freed. Else it gives large blocks back and asks for them again at every layer or never, as the heap happens to
    lie: from 0 to 13,000 page faults in one and the same forward, up to 4 % of its time, of the base's as of the others'."""
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system's C library has no mallopt
        library = ctypes.CDLL(None)
        library.mallopt(trim, 2**31 - 1)
        library.mallopt(mmap, 2**30)


def with_bare_products(folder: str, rank: int) -> torch.nn.Module:
    """MiniLM with the products of a LoRA-XS adapter of random numbers behind every module that `TARGETS` names."""
    model = AutoModel.from_pretrained(folder).eval()

    def add(
        A: torch.Tensor, B: torch.Tensor, R: torch.Tensor, held: dict, module: object, given: tuple, result: torch.Tensor
    ) -> None:
        x = given[0].view(-1, A.shape[1])
        if len(x) not in held:
            held[len(x)] = torch.empty(len(x), rank), torch.empty(len(x), rank)
        inside, turned = held[len(x)]
        torch.mm(x, A.T, out=inside)
        torch.mm(inside, R.T, out=turned)
        result.view(-1, len(B)).addmm_(turned, B.T)

    held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(tuple(TARGETS)):
            A, B, R = torch.randn(rank, module.in_features), torch.randn(module.out_features, rank), torch.randn(rank, rank)
            module.register_forward_hook(partial(add, A, B, 1e-4 * R, held))
    return model


def timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def worst_difference(model: PeftModel, ids: torch.Tensor, names: list[str]) -> float:
    """Of up to 8 rows of the mixed batch to each of them alone."""
    mixed = model(ids, adapter_names=names).last_hidden_state
    worst = 0.0
    for row in range(0, len(names), max(1, len(names) // 8)):
        model.set_adapter(names[row])
        alone = model(ids[row : row + 1]).last_hidden_state[0]
        worst = max(worst, float((alone - mixed[row]).abs().max()))
    return worst


def rows_of_table(given: argparse.Namespace, folder: str) -> Iterator[str]:
    counts = [int(count) for count in given.adapters.split(",")]
    xs = built(lambda: LoraXSConfig(r=given.rank, target_modules=TARGETS), max(counts), folder)
    lora = None
    if not given.no_lora:
        lora = built(lambda: LoraConfig(r=given.rank, target_modules=TARGETS), max(counts), folder)
    base = AutoModel.from_pretrained(folder).eval()
    bare = with_bare_products(folder, given.rank)
    for count in counts:
        rows = max(given.rows, count)
        ids = torch.randint(1000, 20000, (rows, given.length), generator=torch.Generator().manual_seed(1))
        names = [f"a{index % count}" for index in range(rows)]
        cases: dict[str, Callable[[], object]] = {
            "base": partial(base, ids),
            "bare": partial(bare, ids),
            "LoRA-XS": partial(xs, ids, adapter_names=names),
        }
        if lora is not None:
            cases["LoRA"] = partial(lora, ids, adapter_names=names)
        seconds = defaultdict(list)
        for _ in range(given.repeats):
            for label, work in cases.items():
                seconds[label].append(timed(work))
        found = {label: min(values) for label, values in seconds.items()}
        share = {
            label: median([base / own for base, own in zip(seconds["base"], values, strict=True)])
            for label, values in seconds.items()
        }
        lora_cells = f"{1e3 * found['LoRA']:.0f} | {share['LoRA']:.0%}" if lora is not None else "- | -"
        difference = worst_difference(xs, ids, names)
        yield (
            f"| {count} | {rows} x {given.length} | {1e3 * found['base']:.0f} | {1e3 * found['LoRA-XS']:.0f} | {share['LoRA-XS']:.1%} | "
            f"{share['bare']:.1%} | {lora_cells} | {difference:.1e} |"
        )


def loading(given: argparse.Namespace, folder: str) -> Iterator[str]:
    config = LoraXSConfig(r=given.rank, target_modules=TARGETS, init_weights=False)
    with tempfile.TemporaryDirectory() as saved:
        get_peft_model(AutoModel.from_pretrained(folder), config).save_pretrained(saved)
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), saved)
        seconds = []
        for index in range(given.loads):
            seconds.append(timed(lambda index=index: model.load_adapter(saved, f"a{index}")))
            if index + 1 in (10, given.loads):
                switched = [timed(lambda index=index: model.set_adapter(f"a{index}")) for index in range(10)]
                yield f"| set_adapter, {index + 2} resident | {1e3 * median(switched):.1f} |"
        for start in sorted({0, given.loads // 2, given.loads - 10}):
            yield f"| load adapter {start + 2} to {start + 11} | {1e3 * median(seconds[start : start + 10]):.1f} |"
        seconds = [
            timed(lambda index=index: model.delete_adapter(f"a{index}")) for index in range(given.loads - 10, given.loads)
        ]
        yield f"| delete_adapter, {given.loads + 1} resident | {1e3 * median(seconds):.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64, help="samples in a batch")
    parser.add_argument("--length", type=int, default=16, help="tokens in a sample")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--adapters", default="1,8,64", help="how many distinct adapters are in a batch, cases with commas between"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--loads", type=int, default=240, help="adapters to load one after the other")
    parser.add_argument("--no-lora", action="store_true", help="leave PEFT's LoRA out, which takes minutes at 1,024 adapters")
    given = parser.parse_args()
    if given.loads < 20:
        parser.error("--loads must be at least 20: ten adapters are switched, ten others deleted")
    torch.set_num_threads(1)
    keep_freed_memory()
    folder = str(open_model("minilm").folder)
    print(
        "| adapters | batch | base, ms | LoRA-XS, ms | of the base's throughput | bare products, of the base's | LoRA, ms | "
        "of the base's | largest difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with torch.no_grad():
        for row in rows_of_table(given, folder):
            print(row, flush=True)
    print("\n| | ms |\n|---|---|")
    for row in loading(given, folder):
        print(row, flush=True)


if __name__ == "__main__":
    main()
