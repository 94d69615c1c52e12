"""What the trials say together: means and intervals over seeds, paired differences, the front of accuracy against size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers.compare.statistics import holm, paired, t_interval
from analyzers.compare.tasks.metrics import METRIC_LIMITS, lower_is_better
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    import pandas as pd


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row a variant (a method, or LoRA-XS with one plan), from `RunFolder.results()`.

    Columns: label, method, plan, rank, learning_rate, seeds (with a score), failed (trials that stopped, or whose score is
    undefined), metric, score, low, high (95 % over seeds), validation_score, parameters (of the adapter), head_parameters,
    `MEANS` (tokens_per_second: trained on, without padding;
    energy_kept: share of the squared singular values within reach of LoRA-XS), pareto (no other is at least as good with fewer
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
                **done.reindex(columns=list(MEANS)).astype(float).mean().to_dict(),  # older runs lack the last ones
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    if "score" in table:
        table["pareto"] = pareto(table)
    return table


def adapter_size(row: Mapping[str, Any]) -> float:
    """Bytes of a row's adapter as it is on disk, the same number that the storage of adapters is reckoned by; of its tensors, where
    nothing is kept (a full fine-tune) or an earlier version did not say."""
    size = row.get("adapter_file_bytes")
    return float(row["adapter_bytes"] if size is None or size != size else size)


def upward(table: pd.DataFrame) -> pd.DataFrame:
    """`table` (of `summarise`, rows with a score) for judging: where less is better, score, low and high change their sign."""
    if not _lower(table):
        return table
    return table.assign(score=-table["score"], low=-table["high"], high=-table["low"])


def _lower(table: pd.DataFrame) -> bool:
    """Whether less of what `table` reports is better."""
    known = table["metric"].dropna() if "metric" in table else ()
    return bool(len(known)) and lower_is_better(known.iloc[0])


MEANS = (
    "adapter_bytes",
    "adapter_file_bytes",
    "file_bytes",
    "seconds",
    "train_seconds",
    "svd_seconds",
    "svd_share",
    "peak_memory_bytes",
    "tokens_per_second",
    "energy_kept",
)


def best_rate(done: pd.DataFrame) -> float:
    """The learning rate with the best mean validation score; rates with fewer finished seeds stand back."""
    by_rate = done.assign(validation_score=done["validation_score"].astype(float)).groupby("learning_rate")["validation_score"]
    # An undefined score, as of a run that collapsed, is no finished seed.
    means, counts = by_rate.mean(), by_rate.count()
    complete = means[counts == counts.max()].dropna()
    return float(complete.idxmax()) if len(complete) else float(done["learning_rate"].iloc[0])


def paired_differences(results: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Each variant against the variant labelled `baseline`, seed by seed: label, against, what `statistics.paired` says of the
    differences (seeds, difference, low, high, above, below, p, seeds_needed), and p_holm, p adjusted for all rows of the table.

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
            rows.append({"label": label, "against": baseline, **paired(difference, (least - most, most - least))})
    table = pd.DataFrame(rows, columns=["label", "against", *paired(())])
    return table.assign(p_holm=holm(table["p"]))


HIGHER = ("score", "validation_score", "low", "high", "tokens_per_second", "energy_kept")  # is better; of the others less is


def pareto(summary: pd.DataFrame, first: str = "parameters", second: str = "score") -> pd.Series:
    """For each row, whether no other is at least as good in both columns and better in one: the front of any two of them.

    More of a column in `HIGHER` is better, less of any other. A row without a number in either is on no front. Raises SettingsError
    for a column that is not there.
    """
    import pandas as pd

    for name in (first, second):
        if name not in summary:
            raise SettingsError(f"The summary has no column {name!r}; there are {', '.join(summary.columns)}.")
    turned = ("score", "low", "high") if _lower(summary) else ()
    x, y = (
        summary[name].astype(float).to_numpy() * (1 if (name in HIGHER) != (name in turned) else -1) for name in (first, second)
    )
    no_worse = (x[None] >= x[:, None]) & (y[None] >= y[:, None])
    better = (x[None] > x[:, None]) | (y[None] > y[:, None])
    return pd.Series(~(no_worse & better).any(axis=1) & np.isfinite(x) & np.isfinite(y), index=summary.index)
