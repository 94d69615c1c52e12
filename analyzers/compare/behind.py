"""How far each method of a comparison is behind the best one, by the strongest evidence that its run has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyzers.compare.paired import differences
from analyzers.compare.summary import paired_differences, upward
from analyzers.compare.tasks.metrics import lower_is_better

if TYPE_CHECKING:
    import pandas as pd

    from analyzers.compare.runs import RunFolder


def behind_the_best(run: RunFolder, done: pd.DataFrame) -> pd.DataFrame | None:
    """What each other method is behind the best: seed by seed where all have the same several seeds, on the same test examples where
    there is one; None where neither can be told.

    done: the rows of `RunFolder.summary` that have a score. Returns label, against, difference, low, high (95 %), below 0 where the best
    is better, whichever way the metric goes.
    """
    draws = run.draws(done)  # a trial may end while this is read
    judged = upward(done)
    best = judged.loc[judged["score"].idxmax(), "label"]
    lower = lower_is_better(done["metric"].iloc[0])
    if done["seeds"].max() > 1:
        return _by_seed(run, done, best, lower=lower)
    if not set(done["label"]) <= set(draws):
        return None
    if lower:
        draws = {label: -drawn for label, drawn in draws.items()}
    return differences(draws, dict(zip(judged["label"], judged["score"], strict=True)), best)


def _by_seed(run: RunFolder, done: pd.DataFrame, best: str, *, lower: bool) -> pd.DataFrame | None:
    table = paired_differences(run.results(), best)
    table = table[table["label"].isin(done["label"])]
    if table.empty or table["seeds"].min() < 2:
        return None
    return table.assign(difference=-table["difference"], low=-table["high"], high=-table["low"]) if lower else table
