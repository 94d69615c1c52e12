"""What a task is: labelled text, how it is split, and what counts as a good answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from loraxs_core.progress import ProgressCallback

REGRESSION, CLASSIFICATION = "regression", "classification"


@dataclass(frozen=True)
class Example:
    """A text (or a pair of texts) and its label: a class index, or the number to predict."""

    text: str
    label: float
    pair: str | None = None


@dataclass(frozen=True)
class Splits:
    """train: what is learnt from. validation: for the curves and for choosing learning rates. test: the reported score."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


def no_source(data: str | None, progress: ProgressCallback | None) -> Splits:
    raise NotImplementedError("a task needs `read`")


@dataclass(frozen=True)
class Task:
    """Data plus metric. Adding one is adding a file to `analyzers.compare.tasks` with a `TASK` in it.

    kind: ``regression`` or ``classification``. metric: the one that is reported, a key of `scores`. classes: their names, in the
    order of the labels. pairs: whether an example is two texts. read: gives the splits; its first argument is a folder or file the
    user named, or None. missing: one sentence on why it cannot be read on this machine, or None when it can. remark: one sentence
    on what was left out of the data.
    """

    name: str
    label: str
    summary: str
    kind: str
    metric: str
    licence: str = ""
    classes: tuple[str, ...] = ()
    pairs: bool = False
    read: Callable[[str | None, ProgressCallback | None], Splits] = field(default=no_source, compare=False)
    missing: Callable[[], str | None] = field(default=lambda: None, compare=False)
    remark: str = ""

    @property
    def outputs(self) -> int:
        """Width of the head: one number, or one logit a class."""
        return 1 if self.kind == REGRESSION else len(self.classes)

    @property
    def metric_label(self) -> str:
        return METRIC_LABELS[self.metric]


def _pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return float(pearsonr(predicted, labels)[0])


def _spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, labels)[0])


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predicted == labels))


def _f1_macro(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro"))


def _matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


@dataclass(frozen=True)
class Metric:
    """A number that says how good answers are. limits: the least and the largest there can be."""

    label: str
    limits: tuple[float, float]
    compute: Callable[[np.ndarray, np.ndarray], float]


# Kind of task -> its metrics; the first is the one that tasks report unless they say otherwise.
METRICS: dict[str, dict[str, Metric]] = {
    REGRESSION: {
        "pearson": Metric("Pearson r", (-1.0, 1.0), _pearson),
        "spearman": Metric("Spearman ρ", (-1.0, 1.0), _spearman),
    },
    CLASSIFICATION: {
        "accuracy": Metric("accuracy", (0.0, 1.0), _accuracy),
        "f1_macro": Metric("F1 (macro)", (0.0, 1.0), _f1_macro),
        "matthews": Metric("Matthews r", (-1.0, 1.0), _matthews),
    },
}
METRIC_LABELS = {name: metric.label for metrics in METRICS.values() for name, metric in metrics.items()}
METRIC_LIMITS = {name: metric.limits for metrics in METRICS.values() for name, metric in metrics.items()}


def scores(kind: str, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of `kind`. outputs: (n, width) logits or predicted numbers. labels: (n,). NaN where one is undefined.

    Correlations of a constant prediction are undefined: a run that diverged shows as NaN, never as a made-up 0.
    """
    outputs, labels = np.asarray(outputs, dtype=np.float64), np.asarray(labels)
    outputs = outputs.reshape(len(labels), -1)
    predicted = outputs[:, 0] if kind == REGRESSION else outputs.argmax(axis=1)
    constant = kind == REGRESSION and (np.ptp(predicted) == 0 or np.ptp(labels) == 0)
    if constant or not np.isfinite(outputs).all():
        return dict.fromkeys(METRICS[kind], float("nan"))
    return {name: metric.compute(predicted, labels) for name, metric in METRICS[kind].items()}
