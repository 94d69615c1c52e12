"""How long the questions of the Plan and Cost pages take on LLaMA-3-8B, imports aside: `python -m benchmarks.size_speed`.

First is the first answer of a process, later the median of answers for other ranks (what a slider asks for).
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

from analyzers.methods import METHODS
from analyzers.ranks import Budget, make_plan
from analyzers.storage import adapter_size, break_even
from sample_models import open_model

MODEL = "llama-3-8b"


def main() -> None:
    """Prints one line a question: name, first answer and later answers in milliseconds."""
    warnings.simplefilter("ignore")
    small = open_model("roberta-large")
    for method in ("lora", "vera", "lora-xs", "dora"):  # imports what the methods need
        adapter_size(small, method, rank=2)
    model = open_model(MODEL)
    questions: dict[str, Callable[[int], object]] = {
        f"adapter size, {method.label}": lambda rank, name=name: adapter_size(model, name, rank=rank)
        for name, method in METHODS.items()
        if method.config
    }
    questions["plan by role"] = lambda rank: make_plan(model, "role", budget=Budget.like_rank(rank))
    questions["plan by adapter bytes"] = lambda rank: make_plan(model, "role", budget=Budget.adapter_bytes(100_000 * rank))
    questions["break-even with LoRA"] = lambda rank: break_even(model, "lora", rank=rank)
    print(f"{MODEL}, 224 layers{'first (ms)':>40}{'later (ms)':>12}")
    for name, ask in questions.items():
        times = []
        for rank in (8, 9, 10, 12, 16):
            began = time.perf_counter()
            ask(rank)
            times.append(1000 * (time.perf_counter() - began))
        print(f"{name:44}{times[0]:14.0f}{statistics.median(times[1:]):12.0f}")


if __name__ == "__main__":
    main()
