"""The user's own task: a CSV file with the columns ``text``, optionally ``text_b``, ``label``, and optionally ``split``."""

from __future__ import annotations

import contextlib
import csv
import math
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import numpy as np

from analyzers.compare.tasks.base import CLASSIFICATION, REGRESSION, Example, Splits, Task
from loraxs_core.errors import SettingsError
from loraxs_core.paths import user_path
from loraxs_core.progress import ProgressCallback

MOST_CLASSES = 50
FEWEST_ROWS = 30
SPLITS = ("train", "validation", "test")
LINE = object()  # where a row keeps the number of its line
MISSING_WORD = ("nan",)  # what programs write where a label is missing; among numbers also:
MISSING_NUMBER = (*MISSING_WORD, "", "na", "n/a", "<na>", "#n/a", "none", "null", "nil", "-", "?", "missing")
MOST_MISSING = 0.2  # of the rows; more is no slip
FEW_WORDS = 0.05  # of the rows: so few words among numbers are a slip, more are classes
_PLAIN = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)
_COMMA = re.compile(r"[+-]?\d+,\d+")  # where the comma is the decimal point


def csv_task(path: str) -> Task:
    """The task in the file at `path`: regression when the labels are numbers that are not all whole, or more than 50 different
    ones; classification otherwise.

    Without a ``split`` column, 80 % of the rows are trained on, 10 % chosen on and 10 % scored on: the same rows whatever the
    seed, the classes in equal shares. Rows without a label are left out where the labels are numbers, and counted in `remark`.
    Raises SettingsError naming the line for what cannot be used.
    """
    file = user_path(path)
    rows, dropped = _labelled(file, _rows(file))
    labels = [row["label"] for row in rows]
    numbers = _exact(labels)
    fractional = numbers is not None and any(number != number.to_integral_value() for number in numbers)
    if numbers is not None and not fractional:
        labels = [str(int(number)) for number in numbers]  # 1, 1.0 and 01 are one class
    distinct = Counter(labels)
    if fractional or (numbers is not None and len(distinct) > MOST_CLASSES):
        kind, classes, values = REGRESSION, (), [float(number) for number in numbers]
    else:
        if len(distinct) > MOST_CLASSES:
            raise SettingsError(f"{file} has {len(distinct)} different labels; at most {MOST_CLASSES} classes can be compared.")
        names = sorted(distinct, key=int if numbers is not None else None)
        kind, classes = CLASSIFICATION, tuple(names)
        values = [names.index(label) for label in labels]
    if len(set(values)) < 2:
        raise SettingsError(f"Every label in {file} is {labels[0]!r}: there is nothing to learn.")
    examples = [Example(row["text"], value, row.get("text_b")) for row, value in zip(rows, values, strict=True)]
    splits = _split(file, rows, examples, kind)
    what = "a number to predict" if kind == REGRESSION else f"{len(classes)} classes"

    def read(data: str | None = None, progress: ProgressCallback | None = None) -> Splits:
        return splits

    return Task(
        name=f"csv:{path}",
        label=file.stem,
        summary=f"{len(examples):,} rows of {file.name}, {what}: {len(splits.train):,} to train on, "
        f"{len(splits.validation):,} to choose on, {len(splits.test):,} to score on.",
        kind=kind,
        metric="pearson" if kind == REGRESSION else "accuracy",
        classes=classes,
        pairs="text_b" in rows[0],
        read=read,
        remark=f"{dropped:,} of {len(rows) + dropped:,} rows of {file.name} have no label and are left out." if dropped else "",
    )


def _rows(file: Path) -> list[dict[str, str]]:
    if file.exists() and not file.is_file():
        raise SettingsError(f"{file} is no plain file.")
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            for needed in ("text", "label"):
                if needed not in columns:
                    raise SettingsError(
                        f"{file} has no column {needed!r} (its first line gives {', '.join(columns) or 'nothing'}); "
                        "a task needs text and label, and may have text_b and split."
                    )
            if twice := [name for name, count in Counter(columns).items() if count > 1]:
                raise SettingsError(f"{file} has two columns called {twice[0]!r}; rename one.")
            rows = []
            for row in reader:
                rows.append(_checked(file, reader.line_num, row, columns))
    except OSError as error:
        raise SettingsError(f"Cannot read {file}: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is not UTF-8 text; save it as UTF-8.") from None
    except csv.Error as error:
        raise SettingsError(f"{file} is not a well-formed CSV file near line {reader.line_num}: {error}.") from None
    if len(rows) < FEWEST_ROWS:
        raise SettingsError(f"{file} has {len(rows)} rows; a comparison needs at least {FEWEST_ROWS}.")
    return rows


def _checked(file: Path, line: int, row: dict, columns: list[str]) -> dict[str, str]:
    if None in row or any(value is None for value in row.values()):
        raise SettingsError(f"{file}, line {line}: expected {len(columns)} fields ({', '.join(columns)}).")
    row = {name: value.strip() for name, value in row.items()}
    row[LINE] = line
    for needed in ("text", *(("text_b",) if "text_b" in columns else ())):
        if not row[needed]:
            raise SettingsError(f"{file}, line {line}: the field {needed!r} is empty.")
    if "split" in columns and row["split"] not in SPLITS:
        raise SettingsError(f"{file}, line {line}: split is {row['split']!r}; it must be one of {', '.join(SPLITS)}.")
    return row


def _labelled(file: Path, rows: list[dict]) -> tuple[list[dict], int]:
    """(the rows with a label, how many have none). Raises SettingsError for a label that nobody can have meant as it stands.

    A few rows without a label, or with a mark for one that is missing, are no class of their own. Among words an empty label is a
    slip to be mended, and NA or none may be the name of a class.
    """
    numeric = sum(_number(row["label"]) is not None for row in rows) > len(rows) / 2
    marks = MISSING_NUMBER if numeric else MISSING_WORD
    kept = []
    for row in rows:
        label = row["label"]
        if label.lower() in marks:
            continue
        if not label:
            raise SettingsError(f"{file}, line {row[LINE]}: the field 'label' is empty.")
        if _number(label) is None and _no_number(label):
            raise SettingsError(
                f"{file}, line {row[LINE]}: the label {label!r} is no number that can be predicted; write it as a plain number, "
                "or as a word when it names a class."
            )
        kept.append(row)
    odd = [row for row in kept if _number(row["label"]) is None]
    if numeric and odd and (len(odd) < FEW_WORDS * len(kept) or any((_number(row["label"]) or 0) % 1 for row in kept)):
        raise SettingsError(
            f"{file}, line {odd[0][LINE]}: the label {odd[0]['label']!r} stands among numbers; mend it, leave its row out, or write "
            "words for all classes."
        )
    dropped = len(rows) - len(kept)
    if dropped > MOST_MISSING * len(rows):
        raise SettingsError(f"{dropped:,} of the {len(rows):,} rows of {file} have no label; leave them out or label them.")
    if len(kept) < FEWEST_ROWS:
        raise SettingsError(f"{file} has {len(kept)} rows with a label; a comparison needs at least {FEWEST_ROWS}.")
    return kept, dropped


def _number(label: str) -> float | None:
    """The number that a plain decimal stands for, where a float can hold it; None for anything else."""
    if not _PLAIN.fullmatch(label) or not math.isfinite(float(label)):
        return None
    return float(label)


def _no_number(label: str) -> bool:
    """Whether somebody would read `label` as a number that is none here: ``inf``, ``1e999``, ``0x1``, ``1_000``, ``1,5``, ``１``."""
    if _PLAIN.fullmatch(label) or _COMMA.fullmatch(label):
        return True
    for read in (float, lambda text: int(text, 0)):
        with contextlib.suppress(ValueError):
            read(label)
            return True
    return False


def _exact(labels: list[str]) -> list[Decimal] | None:
    """The numbers, to the last digit, where all labels are numbers."""
    return None if any(_number(label) is None for label in labels) else [Decimal(label) for label in labels]


def _split(file: Path, rows: list[dict], examples: list[Example], kind: str) -> Splits:
    if "split" in rows[0]:
        parts = [tuple(example for example, row in zip(examples, rows, strict=True) if row["split"] == name) for name in SPLITS]
        empty = [name for name, part in zip(SPLITS, parts, strict=True) if len(part) < 2]
        if empty:
            raise SettingsError(f"{file} has fewer than 2 rows with split {empty[0]!r}; give {', '.join(SPLITS)} each some.")
        return _learnable(file, Splits(*parts), kind)
    shuffled = np.random.default_rng(0).permutation(len(examples))
    if kind == CLASSIFICATION:
        # Rank of each row among its own class, spread evenly: every tenth row of each class is scored on.
        place: Counter = Counter()
        turns = np.empty(len(examples), dtype=int)
        for index in shuffled:
            turns[index] = place[examples[index].label]
            place[examples[index].label] += 1
    else:
        turns = np.empty(len(examples), dtype=int)
        turns[shuffled] = np.arange(len(examples))
    parts = {"train": [], "validation": [], "test": []}
    for index in shuffled:
        parts[{3: "validation", 8: "test"}.get(int(turns[index]) % 10, "train")].append(examples[index])
    return _learnable(file, Splits(*(tuple(parts[name]) for name in SPLITS)), kind)


def _learnable(file: Path, splits: Splits, kind: str) -> Splits:
    for name in SPLITS:
        if len({example.label for example in getattr(splits, name)}) < 2:
            raise SettingsError(f"The {name} rows of {file} do not hold two different labels; give it more rows.")
    return splits
