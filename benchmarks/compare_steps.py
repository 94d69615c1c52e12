"""Processor seconds of a training step, method by method: MiniLM on STS-B, one thread, all in one process.

    python -m benchmarks.compare_steps [--methods lora,lora-xs] [--steps 40]

Ratios within one run hold on a busy machine as well; the seconds do not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from analyzers.compare import SweepSettings
from analyzers.compare.opened import Opened
from analyzers.compare.trial import run_trial
from analyzers.compare.trial_settings import Listener
from analyzers.methods import METHODS

DEFAULT = "head-only,lora,vera,lora-xs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=DEFAULT)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = SweepSettings(
        "minilm",
        methods=given.methods.split(","),
        steps=given.steps,
        evaluations=1,
        validation_examples=64,
        test_examples=64,
        device="cpu",
    )
    opened, found = Opened.of(settings), {}
    for trial in settings.trials():
        with tempfile.TemporaryDirectory() as folder:
            before = time.process_time()
            ends: list[float] = []

            def advance(cost: float, message: str, ends: list[float] = ends) -> None:
                if message.startswith("step"):
                    ends.append(time.process_time())

            record = run_trial(trial, opened, Path(folder), Listener(advance=advance))
        found[trial.method] = (ends[-1] - ends[0]) / (len(ends) - 1), ends[0] - before, record["svd_seconds"]
    reference = found.get("lora", next(iter(found.values())))[0]
    print(f"MiniLM on STS-B, {given.steps} steps of 32, processor seconds, one thread")
    print("| method | a step | of LoRA's | before the second step | SVD |\n|---|---|---|---|---|")
    for name, (step, begun, svd) in found.items():
        print(f"| {METHODS[name].label} | {step:.3f} | {step / reference:.2f} | {begun:.1f} | {svd:.1f} |")


if __name__ == "__main__":
    main()
