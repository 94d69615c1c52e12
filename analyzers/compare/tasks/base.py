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


METRIC_LABELS = {
    "pearson": "Pearson r",
    "spearman": "Spearman ρ",
    "accuracy": "accuracy",
    "f1_macro": "F1 (macro)",
    "matthews": "Matthews r",
}


METRIC_LIMITS = {
    "pearson": (-1.0, 1.0),
    "spearman": (-1.0, 1.0),
    "accuracy": (0.0, 1.0),
    "f1_macro": (0.0, 1.0),
    "matthews": (-1.0, 1.0),
}  # the least and the largest value there can be


def scores(kind: str, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of `kind`. outputs: (n, width) logits or predicted numbers. labels: (n,). NaN where one is undefined.

    Correlations of a constant prediction are undefined: a run that diverged shows as NaN, never as a made-up 0.
    """
    outputs, labels = np.asarray(outputs, dtype=np.float64), np.asarray(labels)
    outputs = outputs.reshape(len(labels), -1)
    if not np.isfinite(outputs).all():
        return dict.fromkeys(
            ("pearson", "spearman") if kind == REGRESSION else ("accuracy", "f1_macro", "matthews"), float("nan")
        )
    if kind == REGRESSION:
        from scipy.stats import pearsonr, spearmanr

        predicted = outputs[:, 0]
        if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
            return {"pearson": float("nan"), "spearman": float("nan")}
        return {"pearson": float(pearsonr(predicted, labels)[0]), "spearman": float(spearmanr(predicted, labels)[0])}
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted = outputs.argmax(axis=1)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1_macro": float(f1_score(labels, predicted, average="macro")),
        "matthews": float(matthews_corrcoef(labels, predicted)),
    }
