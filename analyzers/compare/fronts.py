"""The front of any two figures of a summary. Where the score is one of them, it goes only through what the intervals separate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analyzers.compare.paired import separated_front
from analyzers.compare.summary import HIGHER, pareto
from analyzers.compare.tasks.metrics import lower_is_better

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SCORE = "score"


def front(summary: pd.DataFrame, draws: Mapping[str, np.ndarray], first: str, second: str) -> pd.Series:
    """For each row, whether the front of columns `first` and `second` goes through it.

    draws: of `RunFolder.draws`. Figures other than the score were measured once and have no interval: among two of them the front is
    that of the plain numbers (`pareto`, whose errors are raised here).
    """
    plain = pareto(summary, first, second)
    if SCORE not in (first, second) or first == second:
        return plain
    other = second if first == SCORE else first
    known = summary.dropna(subset=[other, SCORE])
    if known.empty:
        return plain
    sign = -1.0 if other in HIGHER else 1.0
    ordered = known.assign(less=sign * known[other].astype(float))
    labels = separated_front(ordered, draws, "less", lower=lower_is_better(known["metric"].iloc[0]))
    return summary["label"].isin(labels)
