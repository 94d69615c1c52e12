"""The user's own task: a CSV file with the columns ``text``, optionally ``text_b``, ``label``, and optionally ``split``."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path

import numpy as np

from analyzers.compare.tasks.base import CLASSIFICATION, REGRESSION, Example, Splits, Task
from loraxs_core.errors import SettingsError
from loraxs_core.paths import user_path
from loraxs_core.progress import ProgressCallback

MOST_CLASSES = 50
FEWEST_ROWS = 30
SPLITS = ("train", "validation", "test")


def csv_task(path: str) -> Task:
    """The task in the file at `path`: regression when the labels are numbers that are not all whole, or more than 50 different
    ones; classification otherwise.

    Without a ``split`` column, 80 % of the rows are trained on, 10 % chosen on and 10 % scored on: the same rows whatever the
    seed, the classes in equal shares. Raises SettingsError naming the line for what cannot be used.
    """
    file = user_path(path)
    rows = _rows(file)
    labels = [row["label"] for row in rows]
    numbers = _numbers(labels)
    fractional = numbers is not None and any(number != int(number) for number in numbers)
    if numbers is not None and not fractional:
        labels = [str(int(number)) for number in numbers]  # 1, 1.0 and 01 are one class
    distinct = Counter(labels)
    if fractional or (numbers is not None and len(distinct) > MOST_CLASSES):
        kind, classes, values = REGRESSION, (), numbers
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
    )


def _rows(file: Path) -> list[dict[str, str]]:
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
    for needed in ("text", "label", *(("text_b",) if "text_b" in columns else ())):
        if not row[needed]:
            raise SettingsError(f"{file}, line {line}: the field {needed!r} is empty.")
    if "split" in columns and row["split"] not in SPLITS:
        raise SettingsError(f"{file}, line {line}: split is {row['split']!r}; it must be one of {', '.join(SPLITS)}.")
    return row


def _numbers(labels: list[str]) -> list[float] | None:
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


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
