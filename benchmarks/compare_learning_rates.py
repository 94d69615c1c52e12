"""Which learning rate each method starts from: a search on MiniLM and STS-B, the evidence behind `analyzers.methods`.

    python -m benchmarks.compare_learning_rates [--methods lora,vera] [--steps 60] [--seeds 1] [--out FOLDER]

Every rate is judged by Pearson's r on STS-B's validation split, which no training sees; the test split takes no part.
"""

from __future__ import annotations

import argparse
import math

from analyzers.compare import SweepSettings, run_sweep
from analyzers.methods import METHODS
from loraxs_core.progress import Progress, ProgressCallback, seconds

RATES = {
    "lora": (2e-3, 4e-3),
    "vera": (1e-2, 4e-2),
    "head-only": (1e-3, 3e-3),
    "lora-xs": (4e-3, 1e-2, 2e-2, 4e-2),
}
HEAD_RATE = 3e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", default=",".join(RATES))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out")
    given = parser.parse_args()
    methods = given.methods.split(",")
    settings = SweepSettings(
        "minilm",
        methods=methods,
        seeds=given.seeds,
        steps=given.steps,
        evaluations=1,
        validation_examples=None,
        test_examples=2,  # the test split is not looked at
        learning_rates={name: RATES[name] for name in methods},
        head_learning_rate=HEAD_RATE,
        threads=given.threads,
    )
    run = run_sweep(settings, given.out, progress=show())
    frame = run.results()
    table = frame.pivot_table(index="method", columns="learning_rate", values="validation_score", sort=False)
    print(
        f"Pearson r on STS-B validation, MiniLM, {given.steps} steps of 32, mean of {given.seeds} seed(s); head at {HEAD_RATE:g}"
    )
    print("| method | " + " | ".join(f"{rate:g}" for rate in sorted(table.columns)) + " |")
    print("|---|" + "---|" * len(table.columns))
    for name in methods:
        cells = [table.loc[name].get(rate) if name in table.index else None for rate in sorted(table.columns)]
        text = ["" if cell is None or math.isnan(cell) else f"{cell:.4f}" for cell in cells]
        print(f"| {METHODS[name].label} | " + " | ".join(text) + " |")


def show() -> ProgressCallback:
    """A callback that prints a line when a trial begins."""
    last = [""]

    def tell(progress: Progress) -> None:
        name = progress.message.partition(":")[0]
        if name != last[0]:
            last[0] = name
            print(f"{100 * progress.fraction:3.0f} %  {name}, {seconds(progress.remaining)} left", flush=True)

    return tell


if __name__ == "__main__":
    main()
