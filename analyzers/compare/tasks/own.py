"""Tasks in data of the user's own: which column is what, what kind of task that makes, and its splits.

``csv:PATH`` and ``data:SOURCE`` come here. The metric follows from the columns: ``text`` and ``label`` make a classification, or a
regression where the labels are numbers; ``prompt`` and ``completion``, ``messages``, or ``text`` alone are for decoders.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from analyzers.compare.tasks.base import Example, Splits, Task
from analyzers.compare.tasks.columns import Shape, as_text, shape_of
from analyzers.compare.tasks.conversations import answered_conversation, conversation, with_tools
from analyzers.compare.tasks.cutting import SPLITS, completed, cut
from analyzers.compare.tasks.folders import SPLIT_NAMES, data_files_below
from analyzers.compare.tasks.guess import proposed, suggestion
from analyzers.compare.tasks.labels import Labels, labelled, read_labels
from analyzers.compare.tasks.metrics import CAUSAL, CLASSIFICATION, REGRESSION
from analyzers.compare.tasks.tables import Table, is_source, on_this_machine, read_table
from loraxs_core.account import counted
from loraxs_core.errors import SettingsError
from loraxs_core.paths import user_path
from loraxs_core.progress import ProgressCallback

PREFIXES = ("csv:", "data:")
FEWEST_ROWS = 30
FILLED = ("text", "text_b", "prompt", "completion")  # roles whose fields cannot be empty
FEWEST_TEXTS = 10  # of a text to be continued, whose paragraphs are the rows


def own_source(task: str) -> str | None:
    """SOURCE of ``data:SOURCE`` and PATH of ``csv:PATH``; None for the name of a task."""
    return next((task.removeprefix(prefix) for prefix in PREFIXES if task.startswith(prefix)), None)


def task_name(typed: str, known: Collection[str]) -> str:
    """What was typed as a task, as the name of one: a bare path or hub id is ``data:SOURCE``. known: the tasks there are."""
    typed = typed.strip()
    if typed in known or own_source(typed) is not None:
        return typed
    return f"data:{typed}" if is_source(typed) else typed


def own_task(name: str, source: str, columns: Mapping[str, str]) -> Task:
    """The task in the data at `source` (`tables.read_table`), called `name`.

    columns: role -> column, where a column is not called after its role; roles: `ROLES`. Raises SettingsError naming row or line for
    what cannot be used.
    """
    return _own_task(name, source, tuple(sorted(columns.items())), _version(source))


@lru_cache(maxsize=4)
def _own_task(
    name: str, source: str, columns: tuple[tuple[str, str], ...], version: tuple[tuple[str, float, int], ...]
) -> Task:
    table = table_of(source)
    try:
        shape = shape_of(table, dict(columns))
    except SettingsError as error:
        raise SettingsError(f"{error} {'' if columns else suggestion(table)}".rstrip()) from None
    splits, labels = (_written(table, shape), None) if shape.kind == CAUSAL else _labelled(table, shape)
    kind = shape.kind if labels is None else labels.kind
    classes = () if labels is None else labels.classes
    what = shape.what if labels is None else labels.what

    def read(data: str | None = None, progress: ProgressCallback | None = None) -> Splits:
        return splits

    rows = len(splits.train) + len(splits.validation) + len(splits.test)
    return Task(
        name=name,
        label=table.name,
        summary=f"{rows:,} rows of {_short(source)}, {what}: {len(splits.train):,} to train on, {len(splits.validation):,} to choose on, "
        f"{len(splits.test):,} to score on.",
        kind=kind,
        metric={REGRESSION: "pearson", CLASSIFICATION: "accuracy", CAUSAL: "perplexity"}[kind],
        classes=classes,
        pairs="text_b" in shape.columns,
        read=read,
        remark=" ".join(
            part
            for part in (
                _numbers_alone(shape, splits) if labels else _unused(table, shape),
                labels.remark if labels else "",
                splits.remark,
            )
            if part
        ),
    )


def _numbers_alone(shape: Shape, splits: Splits) -> str:
    """What is to be said where the texts are numbers, as in a table that holds no text."""
    try:
        for example in splits.train:
            float(example.text)
    except ValueError:
        return ""
    return f"“{shape.columns['text']}”, which is taken for the text, holds numbers alone; choose a column with words in it, if there is one."


def _unused(table: Table, shape: Shape) -> str:
    """What is to be said where a text is to be continued and another column looks like its label."""
    if shape.form.name != "text":
        return ""
    form, columns = proposed(table)
    label = columns.get("label")
    if form.kind == CAUSAL or label is None:
        return ""
    return f"Of the columns only “{shape.columns['text']}” is read, as text to be continued; --label {shlex.quote(label)} makes “{label}” its label."


def _version(source: str) -> tuple[tuple[str, float, int], ...]:
    """Changes when the file at `source` does, or any file in the folder."""
    try:
        path, _ = on_this_machine(source)
        files = [path, *(data_files_below(path) if path.is_dir() else ())]
        stats = ((str(file), os.stat(file)) for file in files)
        return tuple((name, found.st_mtime, found.st_size) for name, found in stats)
    except (OSError, ValueError, SettingsError):
        return ()


@lru_cache(maxsize=2)
def _table(source: str, version: tuple[tuple[str, float, int], ...]) -> Table:
    return read_table(source)


def table_of(source: str) -> Table:
    """`read_table`, once for as long as the data does not change."""
    return _table(source, _version(source))


def _short(source: str) -> str:
    return os.path.basename(source.rstrip("/")) if os.path.exists(user_path(source)) else source


# -- rows with a label ----------------------------------------------------------------------------------------------------------


def _labelled(table: Table, shape: Shape) -> tuple[Splits, Labels]:
    roles = ("text", *(("text_b",) if "text_b" in shape.columns else ()))
    rows = _rows(table, shape, (*roles, "label"), FEWEST_ROWS)
    kept, remark = labelled(table, rows)
    labels = read_labels(table, kept, remark)
    examples = [
        Example(row["text"], value, row.get("text_b") if "text_b" in roles else None)
        for row, value in zip(kept, labels.values, strict=True)
    ]
    by_label = labels.kind == CLASSIFICATION
    parts = _parts(kept, examples)
    if parts:
        kept_back = {row["part"] for row in rows} - {row["part"] for row in kept}  # a split whose labels are hidden is no slip
        by_hand = None if kept_back else _by_hand(table, parts, shape)
        splits = by_hand or completed(parts, by_label, table.name)
    else:
        splits = Splits.of(cut(examples, by_label))
    for name in SPLITS:
        if len({example.label for example in getattr(splits, name)}) < 2:
            raise SettingsError(f"The {name} rows of {table.source} do not hold two different labels; give it more rows.")
    return splits, labels


def _by_hand(table: Table, parts: Mapping[str, Sequence[Example]], shape: Shape) -> Splits | None:
    """The splits that a split column names, which have to be complete; None where files or the source's own splits name them."""
    if "split" not in shape.columns:
        return None
    empty = [name for name in SPLITS if len(parts.get(name, ())) < 2]
    if empty:
        raise SettingsError(
            f"{table.source} has fewer than 2 rows with split {empty[0]!r}; give {', '.join(SPLITS)} each some."
        )
    return Splits.of(parts)


def _parts(rows: Sequence[dict], examples: Sequence[Example]) -> dict[str, list[Example]]:
    """`examples` by split: by their rows' split column, else by the part of the source they come from; empty for one part alone that is not
    called after a split."""
    parts: dict[str, list[Example]] = {}
    for row, example in zip(rows, examples, strict=True):
        parts.setdefault(row["part"], []).append(example)
    return {} if len(parts) == 1 and not set(parts) & set(SPLITS) else parts


# -- rows for a decoder ---------------------------------------------------------------------------------------------------------


def _written(table: Table, shape: Shape) -> Splits:
    extra = tuple(role for role in ("context", "tools") if role in shape.columns)
    if "messages" in shape.columns:
        rows = _rows(table, shape, ("messages", *extra), FEWEST_ROWS)
        examples = [_conversed(table, row) for row in rows]
    elif "prompt" in shape.columns:
        rows = _rows(table, shape, ("prompt", "completion", *extra), FEWEST_ROWS)
        examples = [_prompted(table, row) for row in rows]
    else:
        rows = _rows(table, shape, ("text",), FEWEST_TEXTS, blank=True)
        rows = [row for row in rows if row["text"].strip()]
        examples = [Example(row["text"]) for row in rows]
        if len(examples) < FEWEST_TEXTS:
            raise SettingsError(
                f"{table.source} has {len(examples)} paragraphs; a comparison needs at least {FEWEST_TEXTS}, with empty lines between."
            )
    parts = _parts(rows, examples)
    if parts:
        return _by_hand(table, parts, shape) or completed(parts, False, table.name)
    if shape.columns.keys() <= {
        "text",
        "split",
    }:  # text that runs on is cut where it stands: no test sentence amid training text
        first, second = len(examples) * 8 // 10, len(examples) * 9 // 10
        return Splits(tuple(examples[:first]), tuple(examples[first:second]), tuple(examples[second:]))
    return Splits.of(cut(examples, by_label=False))


def _conversed(table: Table, row: Mapping[str, Any]) -> Example:
    where = f"{table.source}, {row['where']}"
    return with_tools(conversation(row["messages"], where), row.get("tools"), where)


def _prompted(table: Table, row: Mapping[str, Any]) -> Example:
    """A prompt, with its context after an empty line where it has one, and the completion."""
    prompt, completion, context = row["prompt"], row["completion"], row.get("context", "")
    where = f"{table.source}, {row['where']}"
    if isinstance(prompt, str) and isinstance(completion, str):
        return Example(f"{prompt}\n\n{context}" if context.strip() else prompt, answer=completion)
    if context.strip():
        raise SettingsError(f"{where}: a context goes with a prompt that is text, not with a list of messages.")
    return with_tools(answered_conversation(prompt, completion, where), row.get("tools"), where)


# -- rows as they stand ---------------------------------------------------------------------------------------------------------


def _rows(table: Table, shape: Shape, roles: Sequence[str], fewest: int, blank: bool = False) -> list[dict[str, Any]]:
    """Every row with its `roles` as text, ``where`` it stands, its ``part`` and which roles are ``given``. Raises SettingsError."""
    found = []
    for part, rows in table.parts.items():
        for index, row in enumerate(rows):
            where = table.where(part, index)
            one: dict[str, Any] = {"where": where, "part": SPLIT_NAMES.get(part, part), "given": shape.columns}
            for role in roles:
                column = shape.columns[role]
                if column not in row and role != "label":  # of a split that its makers keep the labels of
                    raise SettingsError(f"{table.source}, {where}: there is no column {column!r} in this split.")
                one[role] = _field(role, row.get(column), f"{table.source}, {where}: the field {column!r}")
                if role in FILLED and not blank and isinstance(one[role], str) and not one[role].strip():
                    raise SettingsError(f"{table.source}, {where}: the field {column!r} is empty.")
            one["unknown"] = (
                "label" in roles and row.get(shape.columns["label"], "") is None
            )  # said to be, and no slip of the hand
            if "split" in shape.columns:
                named = as_text(row.get(shape.columns["split"])).strip()
                one["part"] = SPLIT_NAMES.get(named.lower(), named)
                if one["part"] not in SPLITS:
                    raise SettingsError(f"{table.source}, {where}: split is {named!r}; it must be one of {', '.join(SPLITS)}.")
            found.append(one)
    if len(found) < fewest:
        raise SettingsError(f"{table.source} has {counted(len(found), 'row')}; a comparison needs at least {fewest}.")
    return found


def _field(role: str, value: object, what: str) -> Any:
    """A field as text, or as it is where its role takes lists. Raises SettingsError for a list or record in place of a text."""
    if role in ("messages", "tools") or (role in ("prompt", "completion") and isinstance(value, list)):
        return value
    if isinstance(value, list | dict):
        raise SettingsError(
            f"{what} holds a {'list' if isinstance(value, list) else 'record'}; {role} has to be one text or number."
        )
    return as_text(value)
