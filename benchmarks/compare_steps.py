"""Processor seconds of a training step, method by method: by default MiniLM on STS-B, one thread, all in one process.

    python -m benchmarks.compare_steps [--methods lora,lora-xs] [--ranks 4,8,16,32] [--steps 40] [--batch 32]
        [--model smollm2-135m --task boolq --data FOLDER]

The methods take their steps by turns, each on the same batch as the others, so that their ratios hold on a busy machine as well; the
seconds do not. With --ranks, methods that have a rank are measured at each, against LoRA of the same rank.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch

from analyzers.compare import SweepSettings
from analyzers.compare.opened import Opened
from analyzers.compare.trial import begin
from analyzers.compare.trial_settings import Listener, TrialSettings
from analyzers.methods import METHODS

DEFAULT = "head-only,lora,vera,lora-xs"
WARM = 2  # first steps that do not count


class Stepping:
    """A trial that is trained step by step, by hand. seconds: what each step took of the processor. begun: what it took to get so far."""

    def __init__(self, trial: TrialSettings, opened: Opened, folder: Path):
        before = time.process_time()
        trainer = begin(trial, opened, folder, Listener()).trainer
        self.trainer, self.optimizer, self.seconds = trainer, trainer.optimizer, list[float]()
        self.batches = iter(trainer.get_train_dataloader())
        trainer.current_gradient_accumulation_steps = 1
        self.begun = time.process_time() - before

    def step(self) -> None:
        batch, begun = next(self.batches), time.process_time()
        self.trainer.training_step(self.trainer.model, batch)
        self.optimizer.step()
        self.trainer.model.zero_grad()
        self.seconds.append(time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=DEFAULT)
    parser.add_argument("--ranks", default="", help="one or several; each method's own when left out")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--task", default="stsb")
    parser.add_argument("--data")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = SweepSettings(
        given.model,
        given.task,
        methods=given.methods.split(","),
        steps=given.steps + WARM,
        batch=given.batch,
        data=given.data,
        evaluations=1,
        validation_examples=64,
        test_examples=64,
        device="cpu",
    )
    opened = Opened.of(settings)
    print(f"{given.model} on {given.task}, {given.steps} steps of {given.batch} by turns, processor seconds of one thread")
    print("| method | rank | a step, the middle one | of LoRA's | before the first step |\n|---|---|---|---|---|")
    for rank in [int(one) for one in given.ranks.split(",") if one] or [None]:
        found = _measured(settings, rank, opened)
        reference = found.get("lora", next(iter(found.values())))
        for name, one in found.items():
            # Step by step, since steps are as long as their batch: what disturbs one of them is left out.
            ratio = statistics.median(own / its for own, its in zip(one.seconds[WARM:], reference.seconds[WARM:], strict=True))
            print(
                f"| {METHODS[name].label} | {one_rank(name, rank)} | {statistics.median(one.seconds[WARM:]):.3f} | {ratio:.3f} | {one.begun:.1f} |"
            )


def one_rank(name: str, rank: int | None) -> int | str:
    method = METHODS[name]
    return rank or method.default_rank if method.ranked else ""


def _measured(settings: SweepSettings, rank: int | None, opened: Opened) -> dict[str, Stepping]:
    """Method -> its steps. rank: of the methods that have one; their own where it is None."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for trial in settings.trials():
            own = trial if rank is None or not trial.kind.ranked else dataclasses.replace(trial, rank=rank)
            found[trial.method] = Stepping(own, opened, Path(folder) / trial.id)
        for number in range(settings.steps):
            turn = list(found.values())
            for one in turn[number % len(turn) :] + turn[: number % len(turn)]:  # each comes after every other
                one.step()
    return found


if __name__ == "__main__":
    main()
