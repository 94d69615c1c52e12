"""Trains what the evidence for rank plans still lacks: one command, resumed where it stopped, one line of JSON a trial.

    python -m benchmarks.planner [--only minilm_wordorder_r4] [--minutes 60] [--out FOLDER] [--list]

Trials go to FOLDER/STUDY.jsonl (benchmarks/planner/results by default); `python -m benchmarks.planner.report` turns them into the
table, the plot and the verdicts that the strategies show. All studies take many CPU hours; --minutes starts none after so long.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

from benchmarks.kept_trials import append, read
from benchmarks.planner.programme import HEAD, STUDIES, Study

RESULTS = Path(__file__).with_name("results")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="studies whose name begins so")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="say what is done and what is not, and stop")
    given = parser.parse_args()
    studies = [study for study in STUDIES if study.name.startswith(given.only or "")]
    if not studies:
        parser.error(f"no study begins with {given.only!r}; there are {', '.join(dict.fromkeys(one.name for one in STUDIES))}")
    end = time.monotonic() + 60 * given.minutes
    for study in studies:
        missing = lacking(study, given.out)
        if given.list:
            print(f"{study.name}: {len(missing)} of {len(list(study.trials()))} trials are missing")
        elif missing:
            train(study, missing, given.out, end)


def lacking(study: Study, folder: Path) -> list[tuple[str, float, int]]:
    done = {(one["arm"], one["rate"], one["seed"]) for one in read(folder / f"{study.name}.jsonl")}
    return [trial for trial in study.trials() if trial not in done]


def train(study: Study, missing: list[tuple[str, float, int]], folder: Path, end: float) -> None:
    import torch

    from benchmarks.planner.arms import Arms
    from benchmarks.planner.trial import Bench, Setup
    from loraxs_core.quick_operators import quick_operators

    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    bench = Bench(Setup(study.model, study.task))
    arms = Arms(bench, study.rank)
    file = folder / f"{study.name}.jsonl"
    for arm, rate, seed in missing:
        if time.monotonic() > end:
            return
        plan = arms.plan(arm, seed)
        with quick_operators():
            found = bench.run(plan, rate, seed)
        record = {
            **bench.setup.about,
            "rank": study.rank,
            "arm": arm,
            "rate": rate,
            "seed": seed,
            **found,
            "ranks": None if arm == HEAD else list(plan.ranks.values()),
        }
        append(file, record)
        print(f"{time.strftime('%H:%M')} {study.name} {arm} rate {rate:g} seed {seed}: {record['score']:.4f}", flush=True)


if __name__ == "__main__":
    main()
