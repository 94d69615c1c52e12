"""How much of a score is chance of the examples: the bootstrap over the test examples, the same ones for every method.

Every trial keeps what it predicted for each test example (``predictions.safetensors`` in its folder). Drawing the examples anew, with
replacement, gives an interval to a single seed; drawing them alike for two methods gives one to their difference, from which what
both find hard has gone (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; Koehn, "Statistical Significance Tests for
Machine Translation Evaluation", EMNLP 2004). It says nothing of the spread over seeds: see `summary`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analyzers.compare.tasks import CAUSAL, CLASSIFICATION, METRICS
from analyzers.compare.tasks.metrics import SHARE, SHARES
from loraxs_core.errors import RunError
from loraxs_core.paths import atomic_file

if TYPE_CHECKING:
    import pandas as pd

FILE = "predictions.safetensors"
DRAWS = 1000
BLOCK = 4_000_000  # counts that are held at once
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Predictions:
    """Of one trial on the test split. predicted, labels: (n,), the class or the number, in the order in which the examples were evaluated:
    sorted by length, the same for all methods of a run, and not that of the file they came from."""

    predicted: np.ndarray
    labels: np.ndarray


def save_predictions(folder: Path, kind: str, outputs: np.ndarray, labels: np.ndarray) -> None:
    """Keeps what a trial predicted. kind: of the task. outputs: as `tasks.scores` takes them: of decoders the negative log-likelihood
    of each answer and its tokens, which are kept as prediction and label."""
    from safetensors.numpy import save_file

    outputs = np.asarray(outputs, dtype=np.float64).reshape(len(labels), -1)
    if kind == CAUSAL:
        labels = outputs[:, 1]
    predicted = outputs.argmax(axis=1).astype(np.float64) if kind == CLASSIFICATION else outputs[:, 0]
    with atomic_file(folder / FILE) as temporary:
        save_file({"predicted": predicted.copy(), "labels": np.asarray(labels, dtype=np.float64).copy()}, temporary)


def save_answers(folder: Path, right: np.ndarray) -> None:
    """Keeps which answers of a decoder were right. right: (n,), 1 or 0."""
    from safetensors.numpy import save_file

    with atomic_file(folder / FILE) as temporary:
        save_file({"predicted": np.asarray(right, dtype=np.float64), "labels": np.ones(len(right))}, temporary)


def load_predictions(folder: Path) -> Predictions | None:
    """What the trial in `folder` predicted; None where it kept nothing, as trials of earlier versions, or nothing one can use."""
    path = folder / FILE
    if not path.is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        kept = load_file(path)
        predicted, labels = kept["predicted"], kept["labels"]
    except (SafetensorError, KeyError, OSError, TypeError, ValueError):
        return None
    usable = predicted.ndim == labels.ndim == 1 and len(predicted) == len(labels) > 1
    return Predictions(predicted, labels) if usable and np.isfinite(predicted).all() and np.isfinite(labels).all() else None


def resampled(known: Mapping[str, Predictions], metric: str, *, draws: int = DRAWS, seed: int = 0) -> dict[str, np.ndarray]:
    """Label -> (draws,) scores on examples drawn anew, in each draw the same ones for every label.

    known: label -> predictions on the same examples. Raises RunError when they are not the same.
    """
    if not known:
        return {}
    first = next(iter(known.values())).labels
    if any(not np.array_equal(one.labels, first) for one in known.values()):
        raise RunError("The methods were scored on different examples, so their answers cannot be paired.")
    random, count = np.random.default_rng(seed), len(first)
    found: dict[str, list[np.ndarray]] = {label: [] for label in known}
    size = max(1, BLOCK // count)
    for start in range(0, draws, size):
        counts = random.multinomial(count, np.full(count, 1 / count), size=min(size, draws - start))
        for label, one in known.items():
            found[label].append(_scores(metric, counts, one))
    return {label: np.concatenate(parts) for label, parts in found.items()}


@lru_cache(maxsize=64)
def resampled_files(files: tuple[tuple[str, Path, object, float], ...], metric: str) -> dict[str, np.ndarray]:
    """`resampled` of what trials kept, remembered. files: label, the trial's folder, a stamp of its file and its score; those that
    kept nothing usable, do not give that score, or were scored on other examples than the first, are left out."""
    known = {
        label: found
        for label, folder, _, score in files
        if (found := load_predictions(folder)) is not None and _gives(found, metric, score)
    }
    if not known:
        return {}
    first = next(iter(known.values())).labels
    return resampled({label: one for label, one in known.items() if np.array_equal(one.labels, first)}, metric)


def _gives(one: Predictions, metric: str, score: float) -> bool:
    """Whether these predictions are those that were scored: a damaged file would give another interval without a word."""
    found = _scores(metric, np.ones((1, len(one.labels)), dtype=np.int64), one)[0]
    return bool(abs(found - score) <= 1e-6)


def interval(draws: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """(low, high): the middle `confidence` of the draws; those where the metric is undefined are left out."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def score_interval(draws: np.ndarray, metric: str, examples: float) -> tuple[float, float]:
    """`interval` of a score; of a share of right answers that is 0 or 1, where every draw is the same, the exact one (Clopper and Pearson 1934): none
    right of four is no certainty. examples: how many were scored; NaN where a record does not say."""
    low, high = interval(draws)
    if metric in SHARES and low == high and low in SHARE and examples >= 1:
        edge = ((1 - CONFIDENCE) / 2) ** (1 / examples)
        return (0.0, 1 - edge) if low == 0 else (edge, 1.0)
    return low, high


def differences(draws: Mapping[str, np.ndarray], scores: Mapping[str, float], against: str) -> pd.DataFrame:
    """Each label against the label `against` on the same examples: label, against, difference, low, high (95 %)."""
    import pandas as pd

    rows = []
    for label in draws:
        if label != against:
            low, high = interval(draws[label] - draws[against])
            difference = scores[label] - scores[against]
            rows.append({"label": label, "against": against, "difference": difference, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["label", "against", "difference", "low", "high"])


def separated_front(
    summary: pd.DataFrame, draws: Mapping[str, np.ndarray], size: str = "parameters", *, lower: bool = False
) -> list[str]:
    """Labels from the smallest method upwards, each better than the one before it by more than chance.

    Judged on the same examples where `draws` has both, else by whether their intervals (``low``, ``high``) are apart. lower: whether a
    lower score is the better one.
    """
    front: list[dict] = []
    sign = -1.0 if lower else 1.0
    for row in summary.assign(order=-sign * summary["score"]).sort_values([size, "order"]).to_dict("records"):
        if row["score"] == row["score"] and (not front or _apart(row, front[-1], draws, sign)):
            front.append(row)
    return [row["label"] for row in front]


def _apart(row: dict, other: dict, draws: Mapping[str, np.ndarray], sign: float) -> bool:
    """Whether `row` is better than `other` by more than chance."""
    if row["label"] in draws and other["label"] in draws and row["seeds"] == other["seeds"] == 1:
        return interval(sign * (draws[row["label"]] - draws[other["label"]]))[0] > 0
    own, theirs = (sorted((sign * one["low"], sign * one["high"])) for one in (row, other))
    return own[0] > theirs[1]


def _scores(metric: str, counts: np.ndarray, one: Predictions) -> np.ndarray:
    """(draws,) scores. counts: (draws, n), how often each example was drawn."""
    if metric in _FAST:
        with np.errstate(invalid="ignore", divide="ignore"):
            return _FAST[metric](counts.astype(np.float64), one.predicted, one.labels)
    compute = next(known[metric].compute for known in METRICS.values() if metric in known)
    drawn = [np.repeat(np.arange(len(one.labels)), row) for row in counts]
    return np.array([compute(one.predicted[index], one.labels[index]) for index in drawn])


def _accuracy(counts: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return counts @ (predicted == labels) / counts.sum(axis=1)


def _pearson(counts: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    shares = counts / counts.sum(axis=1, keepdims=True)
    x, y = predicted - predicted.mean(), labels - labels.mean()  # a shift changes nothing but rounding
    mean_x, mean_y = shares @ x, shares @ y
    spread = (shares @ x**2 - mean_x**2) * (shares @ y**2 - mean_y**2)
    return (shares @ (x * y) - mean_x * mean_y) / np.sqrt(spread)


_FAST: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {"accuracy": _accuracy, "pearson": _pearson}
