"""Several runs on one plot: their curves and their summaries in one table, each row's label saying which run it is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyzers.compare.runs import RunFolder

if TYPE_CHECKING:
    import pandas as pd


def metrics_of(run: RunFolder, beside: Sequence[RunFolder]) -> pd.DataFrame:
    """The curves of `run`, as it gives them, and those of others under labels of their own (see `called`)."""
    import pandas as pd

    frames = [run.metrics(), *(_named(other, other.metrics()) for other in beside)]
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def summaries_of(run: RunFolder, beside: Sequence[RunFolder]) -> pd.DataFrame:
    """The rows with a score of `run` and of the others that report the same metric."""
    import pandas as pd

    own = scored(run.summary())
    if own.empty:
        return own
    metric = own["metric"].iloc[0]
    others = [_named(other, scored(other.summary())) for other in beside]
    return pd.concat([own, *(frame for frame in others if len(frame) and frame["metric"].iloc[0] == metric)], ignore_index=True)


def scored(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary that have a score."""
    return summary.dropna(subset=["score"]) if "score" in summary else summary.iloc[:0]


def called(label: str, run: RunFolder) -> str:
    """A label of a run that is drawn beside another."""
    return f"{label} ({run.name})"


def _named(run: RunFolder, frame: pd.DataFrame) -> pd.DataFrame:
    if frame.empty:
        return frame
    frame = frame.assign(label=[called(label, run) for label in frame["label"]])
    return frame.assign(trial=f"{run.name}/" + frame["trial"]) if "trial" in frame else frame
