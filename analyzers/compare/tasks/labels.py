"""What a column of labels means: numbers to predict or classes, what is missing, and what nobody can have meant."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from analyzers.compare.tasks.metrics import CLASSIFICATION, REGRESSION
from analyzers.compare.tasks.tables import Table
from loraxs_core.errors import SettingsError

MOST_CLASSES = 50
FEWEST_ROWS = 30
MISSING_WORD = ("nan",)  # what programs write where a label is missing; among numbers also:
MISSING_NUMBER = (*MISSING_WORD, "", "na", "n/a", "<na>", "#n/a", "none", "null", "nil", "-", "?", "missing")
MOST_MISSING = 0.2  # of the rows; more is no slip
FEW_WORDS = 0.05  # of the rows: so few words among numbers are a slip, more are classes
HIDDEN = ("", "-1")  # labels of a test split whose makers keep them to themselves
_PLAIN = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)
_COMMA = re.compile(r"[+-]?\d+,\d+")  # where the comma is the decimal point


@dataclass(frozen=True)
class Labels:
    """kind: regression or classification. values: a number a row: the label, or the index of its class. what: the kind in words."""

    kind: str
    classes: tuple[str, ...]
    values: Sequence[float]
    what: str
    remark: str


def read_labels(table: Table, rows: Sequence[Mapping[str, Any]], remark: str) -> Labels:
    """Numbers that are not all whole, or more than 50 different ones, are predicted; others are classes (1, 1.0 and 01 are one)."""
    labels = [row["label"] for row in rows]
    numbers = _exact(labels)
    fractional = numbers is not None and any(number != number.to_integral_value() for number in numbers)
    if numbers is not None and not fractional:
        labels = [str(int(number)) for number in numbers]
    distinct = Counter(labels)
    classes: tuple[str, ...] = ()
    if numbers is not None and (fractional or len(distinct) > MOST_CLASSES):
        kind, values, what = REGRESSION, [float(number) for number in numbers], "a number to predict"
    else:
        if len(distinct) > MOST_CLASSES:
            raise SettingsError(
                f"{table.source} has {len(distinct)} different labels; at most {MOST_CLASSES} classes can be compared."
            )
        classes = tuple(sorted(distinct, key=int) if numbers is not None else sorted(distinct))
        place = {name: index for index, name in enumerate(classes)}
        kind, values, what = CLASSIFICATION, [place[label] for label in labels], f"{len(classes)} classes"
    if len(set(values)) < 2:
        raise SettingsError(f"Every label in {table.source} is {labels[0]!r}: there is nothing to learn.")
    return Labels(kind, classes, values, what, remark)


def labelled(table: Table, rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """(the rows with a label, a sentence on those that have none). Raises SettingsError for a label that nobody can have meant.

    A split of the source of which no row has a label is a test split whose makers keep them: it is never scored. A few rows without a
    label, or with a mark for one that is missing, are no class of their own: null in JSON and Parquet, a class label of -1. Among words an
    empty label of a CSV file is a slip to be mended, and NA or none may be the name of a class.
    """
    rows, commas = _without_commas(table, rows)
    rows, hidden = _without_hidden(rows)
    numeric = sum(_number(row["label"]) is not None for row in rows) > len(rows) / 2
    marks = MISSING_NUMBER if numeric else MISSING_WORD
    kept = []
    for row in rows:
        label = row["label"]
        if row["unknown"] or label.lower() in marks:
            continue
        if not label:
            raise SettingsError(
                f"{table.source}, {row['where']}: the field {row['given']['label']!r} is empty; label the row or leave it out."
            )
        if _number(label) is None and _no_number(label):
            raise SettingsError(
                f"{table.source}, {row['where']}: the label {label!r} is no number that can be predicted; write it as a plain number, "
                "or as a word when it names a class."
            )
        kept.append(row)
    odd = [row for row in kept if _number(row["label"]) is None]
    if numeric and odd and (len(odd) < FEW_WORDS * len(kept) or any((_number(row["label"]) or 0) % 1 for row in kept)):
        raise SettingsError(
            f"{table.source}, {odd[0]['where']}: the label {odd[0]['label']!r} stands among numbers; mend it, leave its row out, or "
            "write words for all classes."
        )
    dropped = len(rows) - len(kept)
    if dropped > MOST_MISSING * len(rows):
        raise SettingsError(
            f"{dropped:,} of the {len(rows):,} rows of {table.source} have no label; leave them out or label them."
        )
    if len(kept) < FEWEST_ROWS:
        raise SettingsError(f"{table.source} has {len(kept)} rows with a label; a comparison needs at least {FEWEST_ROWS}.")
    return kept, " ".join(part for part in (hidden, commas, _left_out(table, dropped, len(rows))) if part)


def _without_commas(table: Table, rows: Sequence[dict[str, Any]]) -> tuple[Sequence[dict[str, Any]], str]:
    """(rows whose labels have a point for their decimal comma, a sentence on it): where fields are separated by something else the comma
    is free for it, and spreadsheets write it so."""
    marked = [row["label"] for row in rows if row["label"].lower() not in MISSING_NUMBER]
    with_comma = [label for label in marked if _COMMA.fullmatch(label)]
    if table.separator == "," or not with_comma or any(_number(label.replace(",", ".")) is None for label in marked):
        return rows, ""
    if any("." in label for label in marked):
        return rows, ""
    said = f"The comma in labels such as {with_comma[0]} is read as the decimal point."
    return [{**row, "label": row["label"].replace(",", ".")} for row in rows], said


def _without_hidden(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    by_part: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_part.setdefault(row["part"], []).append(row)
    hidden = [name for name, part in by_part.items() if len(by_part) > 1 and len({row["label"] for row in part}) == 1]
    hidden = [name for name in hidden if by_part[name][0]["label"] in HIDDEN and name != "train"]
    kept = [row for row in rows if row["part"] not in hidden]
    return kept, f"The {' and '.join(hidden)} split has no labels and is not scored." if hidden else ""


def _left_out(table: Table, dropped: int, rows: int) -> str:
    name = Path(table.source).name
    return f"{dropped:,} of {rows:,} rows of {name} have no label and are left out." if dropped else ""


def _number(label: str) -> float | None:
    """The number that a plain decimal stands for, where a float can hold it; None for anything else."""
    if not _PLAIN.fullmatch(label) or not math.isfinite(float(label)):
        return None
    return float(label)


def _no_number(label: str) -> bool:
    """Whether somebody would read `label` as a number that is none here: ``inf``, ``1e999``, ``0x1``, ``1_000``, ``1,5``, ``１``."""
    if _PLAIN.fullmatch(label) or _COMMA.fullmatch(label):
        return True
    readers: tuple[Callable[[str], object], ...] = (float, lambda text: int(text, 0))
    for read in readers:
        with contextlib.suppress(ValueError):
            read(label)
            return True
    return False


def _exact(labels: list[str]) -> list[Decimal] | None:
    """The numbers, to the last digit, where all labels are numbers."""
    return None if any(_number(label) is None for label in labels) else [Decimal(label) for label in labels]
