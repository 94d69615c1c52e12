"""Does a rank plan earn its place? Uniform, role and energy plans of LoRA-XS at the same budget, on real tasks, paired by seed.

    python -m benchmarks.plans_on_tasks [--tasks stsb,sst2] [--seeds 3] [--like-rank 4] [--steps 60] [--rates 0.004,0.01] [--out FOLDER]

Every plan stays within the same sum of r², alpha/r is 1 everywhere, and batches and the head's start are those of the seed. Each
plan takes the learning rate that is best for it on the validation split; the table is of the test split. An unfinished run in
FOLDER goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from analyzers.compare import SweepSettings, run_sweep
from analyzers.compare.summary import paired_differences
from analyzers.ranks import Budget, make_plan
from analyzers.spectra import scan
from benchmarks.compare_learning_rates import HEAD_RATE, show
from loraxs_core.paths import data_dir
from sample_models import open_model

STRATEGIES = ("uniform", "role", "energy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", default="stsb,sst2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--like-rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rates", default="0.01")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    checkpoint = open_model(given.model)
    spectra = scan(checkpoint)
    budget = Budget.like_rank(given.like_rank)
    plans = {name: make_plan(checkpoint, name, budget=budget, spectra=spectra) for name in STRATEGIES}
    for task in given.tasks.split(","):
        settings = SweepSettings(
            given.model,
            task,
            methods=("head-only", "lora-xs"),
            seeds=given.seeds,
            steps=given.steps,
            evaluations=1,
            plans=plans,
            learning_rates={"lora-xs": [float(rate) for rate in given.rates.split(",")]},
            head_learning_rate=HEAD_RATE,
            threads=given.threads,
        )
        root = given.out or data_dir("benchmarks", "plans_on_tasks")
        run = run_sweep(settings, root / f"{task}-like{given.like_rank}-steps{given.steps}-seeds{given.seeds}", show())
        report(run, given)


def report(run, given: argparse.Namespace) -> None:
    task = run.settings.check()
    print(
        f"\n{given.model} on {task.label}, budget of uniform r = {given.like_rank}, {given.steps} steps of {run.settings.batch}, "
        f"{given.seeds} seeds; {task.metric_label} on the test split with its 95 % t interval"
    )
    differences = paired_differences(run.results(), "LoRA-XS, uniform").set_index("label")
    print("| plan | trained | learning rate | score | against uniform, paired |")
    print("|---|---|---|---|---|")
    for row in run.summary().itertuples(index=False):
        against = "" if row.label not in differences.index else differences.loc[row.label]
        paired = (
            against if isinstance(against, str) else f"{against.difference:+.4f} ({against.low:+.4f} to {against.high:+.4f})"
        )
        print(
            f"| {row.label} | {row.parameters:,} | {row.learning_rate:g} | {row.score:.4f} ({row.low:.4f} to {row.high:.4f}) | "
            f"{paired} |"
        )


if __name__ == "__main__":
    main()
