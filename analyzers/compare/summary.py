"""What the trials say together: means and intervals over seeds, paired differences, the front of accuracy against size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analyzers.compare.tasks.metrics import METRIC_LIMITS, lower_is_better
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95


def t_interval(
    values: np.ndarray | list[float], confidence: float = CONFIDENCE, limits: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float, float]:
    """(mean, low, high): Student's t interval of the mean of independent `values`, as far as it lies within `limits`.

    limits: the least and the largest value there can be. The mean over all seeds lies between them, so leaving out what lies
    beyond loses no coverage (Mandelkern, "Setting confidence intervals for bounded parameters", Statistical Science 2002). Fisher's
    z is not used: it would bound the back-transformed mean of z, which is not the mean that is reported, nor does it serve accuracy.
    One value says nothing about its spread: low = high = the value. NaN for none.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, mean, mean
    from scipy.stats import t

    half = float(t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, max(mean - half, limits[0]), min(mean + half, limits[1])


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row a variant (a method, or LoRA-XS with one plan), from `RunFolder.results()`.

    Columns: label, method, plan, rank, learning_rate, seeds (with a score), failed (trials that stopped, or whose score is
    undefined), metric, score, low, high (95 % over seeds), validation_score, parameters (of the adapter), head_parameters,
    adapter_bytes, file_bytes, seconds, svd_seconds, svd_share, peak_memory_bytes, pareto (no other is at least as good with fewer
    trained numbers). With several learning rates, the one with the best mean validation score over the seeds that all rates have
    finished; the test score takes no part in the choice.
    """
    import pandas as pd

    rows = []
    if results.empty:
        return pd.DataFrame(rows)
    for (method, label), part in results.groupby(["method", "label"], sort=False):
        done = part[part["state"] == "done"] if "score" in part else part.iloc[:0]
        failed = int((part["state"] == "failed").sum())
        first = part.iloc[0]
        row = {"label": label, "method": method, "plan": first.get("plan"), "rank": first.get("rank"), "failed": failed}
        if len(done):
            rate = best_rate(done)
            done = done[done["learning_rate"] == rate]
            metric = done["metric"].iloc[0]
            scores = done["score"].astype(float).dropna()
            row["failed"] += len(done) - len(scores)
            score, low, high = t_interval(scores, limits=METRIC_LIMITS[metric])
            row |= {
                "learning_rate": rate,
                "seeds": len(scores),
                "metric": metric,
                "score": score,
                "low": low,
                "high": high,
                "validation_score": done["validation_score"].astype(float).mean(),
                "parameters": int(done["adapter_parameters"].iloc[0]),
                "head_parameters": int(done["head_parameters"].iloc[0]),
                **{name: done[name].astype(float).mean() for name in MEANS},
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    if "score" in table:
        table["pareto"] = pareto(table)
    return table


def upward(table: pd.DataFrame) -> pd.DataFrame:
    """`table` (of `summarise`, rows with a score) for judging: where less is better, score, low and high change their sign."""
    if not _lower(table):
        return table
    return table.assign(score=-table["score"], low=-table["high"], high=-table["low"])


def _lower(table: pd.DataFrame) -> bool:
    """Whether less of what `table` reports is better."""
    known = table["metric"].dropna() if "metric" in table else ()
    return bool(len(known)) and lower_is_better(known.iloc[0])


MEANS = ("adapter_bytes", "file_bytes", "seconds", "train_seconds", "svd_seconds", "svd_share", "peak_memory_bytes")


def best_rate(done: pd.DataFrame) -> float:
    """The learning rate with the best mean validation score; rates with fewer finished seeds stand back."""
    by_rate = done.assign(validation_score=done["validation_score"].astype(float)).groupby("learning_rate")["validation_score"]
    # An undefined score, as of a run that collapsed, is no finished seed.
    means, counts = by_rate.mean(), by_rate.count()
    complete = means[counts == counts.max()].dropna()
    return float(complete.idxmax()) if len(complete) else float(done["learning_rate"].iloc[0])


def paired_differences(results: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Each variant against the variant labelled `baseline`, seed by seed: label, seeds, difference, low, high (95 %, t).

    Pairing takes out what a seed does to both (data order, the head's start); each side uses its own best learning rate. seeds
    counts those that both finished; with one, low = high = the difference, which says nothing about its spread.
    Raises SettingsError when there is no such variant.
    """
    import pandas as pd

    done = results[results["state"] == "done"] if "score" in results else results.iloc[:0]
    labels = list(dict.fromkeys(done.get("label", [])))
    if baseline not in labels:
        raise SettingsError(f"No finished trial is labelled {baseline!r}; there are {', '.join(labels) or 'none'}.")

    def by_seed(label: str) -> pd.Series:
        part = done[done["label"] == label]
        return part[part["learning_rate"] == best_rate(part)].set_index("seed")["score"].astype(float)

    least, most = METRIC_LIMITS[done["metric"].iloc[0]]
    reference, rows = by_seed(baseline), []
    for label in labels:
        if label != baseline:
            difference = (by_seed(label) - reference).dropna()
            mean, low, high = t_interval(difference, limits=(least - most, most - least))
            rows.append(
                {"label": label, "against": baseline, "seeds": len(difference), "difference": mean, "low": low, "high": high}
            )
    return pd.DataFrame(rows, columns=["label", "against", "seeds", "difference", "low", "high"])


def pareto(summary: pd.DataFrame, size: str = "parameters", score: str = "score") -> pd.Series:
    """For each row, whether no other has at least its score with less `size`, or a better score with no more of it."""
    import pandas as pd

    sign = -1.0 if score == "score" and _lower(summary) else 1.0
    sizes, values = summary[size].astype(float).to_numpy(), sign * summary[score].astype(float).to_numpy()
    better = (sizes[None] <= sizes[:, None]) & (values[None] >= values[:, None])
    strictly = (sizes[None] < sizes[:, None]) | (values[None] > values[:, None])
    return pd.Series(~(better & strictly).any(axis=1) & np.isfinite(values), index=summary.index)
