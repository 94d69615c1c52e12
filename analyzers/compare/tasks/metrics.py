"""Metrics: what counts as a good answer. scikit-learn and scipy compute them; those of decoders that are read or write come from
lm-evaluation-harness (`analyzers.compare.harness`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

REGRESSION, CLASSIFICATION, CAUSAL = "regression", "classification", "causal"
HARNESS = "harness"  # no kind of task: metrics that lm-evaluation-harness gives of a decoder


def _pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return float(pearsonr(predicted, labels)[0])


def _spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, labels)[0])


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predicted == labels))


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, pos_label=1, zero_division=0.0))


def _f1_macro(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro"))


def _matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def _perplexity(predicted: np.ndarray, labels: np.ndarray) -> float:
    """predicted: (n,) summed negative log-likelihoods, labels: (n,) how many tokens each is of."""
    return float(np.exp(predicted.sum() / labels.sum()))


def _likelihood(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(-predicted.sum() / labels.sum())


@dataclass(frozen=True)
class Metric:
    """A number that says how good answers are. limits: the least and the largest there can be. lower: whether less is better."""

    label: str
    limits: tuple[float, float]
    compute: Callable[[np.ndarray, np.ndarray], float]
    lower: bool = False


SHARE = (0.0, 1.0)
# Kind of task -> its metrics; the first is the one that tasks report unless they say otherwise.
METRICS: dict[str, dict[str, Metric]] = {
    REGRESSION: {
        "pearson": Metric("Pearson r", (-1.0, 1.0), _pearson),
        "spearman": Metric("Spearman ρ", (-1.0, 1.0), _spearman),
    },
    CLASSIFICATION: {
        "accuracy": Metric("accuracy", SHARE, _accuracy),
        "f1": Metric("F1", SHARE, _f1),
        "f1_macro": Metric("F1 (macro)", SHARE, _f1_macro),
        "matthews": Metric("Matthews r", (-1.0, 1.0), _matthews),
    },
    CAUSAL: {
        "perplexity": Metric("perplexity", (1.0, float("inf")), _perplexity, lower=True),
        "answer_likelihood": Metric("log-likelihood a token", (-float("inf"), 0.0), _likelihood),
    },
    HARNESS: {  # of right and wrong answers, 1 and 0 against 1
        "accuracy": Metric("accuracy", SHARE, _accuracy),
        "accuracy_normalised": Metric("accuracy (by length)", SHARE, _accuracy),
        "exact_match": Metric("exact match", SHARE, _accuracy),
        "exact_match_flexible": Metric("exact match (last number)", SHARE, _accuracy),
    },
}
_ALL = {name: metric for metrics in METRICS.values() for name, metric in metrics.items()}
METRIC_LABELS = {name: metric.label for name, metric in _ALL.items()}
SHARES = frozenset(name for name, metric in _ALL.items() if metric.compute is _accuracy)  # of right answers
METRIC_LIMITS = {name: metric.limits for name, metric in _ALL.items()}


def lower_is_better(metric: str) -> bool:
    """Whether less of `metric` is better, as of perplexity."""
    return metric in _ALL and _ALL[metric].lower


def metrics_of(kind: str, classes: int) -> dict[str, Metric]:
    """The metrics of a task of `kind`; F1 of the second class is for two classes alone."""
    return {name: metric for name, metric in METRICS[kind].items() if name != "f1" or classes == 2}


def mean_loss(kind: str, outputs: np.ndarray, labels: np.ndarray) -> float:
    """Cross-entropy (natural logarithm) of logits, squared error of numbers, or of decoders the negative log-likelihood of a token: the
    mean over all examples (tokens), in whatever batches and by however many processes they were read. Arguments as for `scores`."""
    outputs, labels = np.asarray(outputs, dtype=np.float64), np.asarray(labels)
    outputs = outputs.reshape(len(labels), -1)
    if kind == CAUSAL:
        return float(outputs[:, 0].sum() / outputs[:, 1].sum())
    if kind == REGRESSION:
        return float(np.mean((outputs[:, 0] - labels) ** 2))
    from scipy.special import logsumexp

    own = np.take_along_axis(outputs, labels.astype(np.int64)[:, None], axis=1)[:, 0]
    return float(np.mean(logsumexp(outputs, axis=1) - own))


def scores(kind: str, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of `kind`. NaN where one is undefined.

    outputs: (n, width) logits or predicted numbers; of decoders (n, 2), the summed negative log-likelihood of an answer's tokens and
    how many they are. labels: (n,); of decoders they are not looked at. Correlations of a constant prediction are undefined: a run
    that diverged shows as NaN, never as a made-up 0.
    """
    outputs, labels = np.asarray(outputs, dtype=np.float64), np.asarray(labels)
    outputs = outputs.reshape(len(labels), -1)
    found = metrics_of(kind, outputs.shape[1])
    if kind == CAUSAL:
        predicted, labels = outputs[:, 0], outputs[:, 1]
    else:
        predicted = outputs[:, 0] if kind == REGRESSION else outputs.argmax(axis=1)
    constant = kind == REGRESSION and (np.ptp(predicted) == 0 or np.ptp(labels) == 0)
    if constant or not np.isfinite(outputs).all():
        return dict.fromkeys(found, float("nan"))
    return {name: metric.compute(predicted, labels) for name, metric in found.items()}
