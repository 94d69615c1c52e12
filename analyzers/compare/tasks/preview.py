"""What a page shows of data before anything is trained on it: columns, first rows, and what task they would make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analyzers.compare.tasks.metrics import METRIC_LABELS
from analyzers.compare.tasks.own import as_text, own_task, shape_of, table_of
from loraxs_core.errors import SettingsError

MOST_CHARACTERS = 300  # of a field


@dataclass(frozen=True)
class Preview:
    """columns: name -> what it holds. rows: the first ones, every field as text. parts: rows in each split, ``""`` for a source
    without splits. roles: role -> column, as far as it can be told. kind, metric, metric_label: of the task that follows, empty where
    none does; summary: the task in a sentence; remark: what is left out. problem: one sentence on why it makes no task yet."""

    columns: Mapping[str, str]
    rows: list[dict[str, str]]
    parts: Mapping[str, int]
    roles: Mapping[str, str]
    kind: str = ""
    metric: str = ""
    metric_label: str = ""
    summary: str = ""
    remark: str = ""
    problem: str = ""


def preview(source: str, columns: Mapping[str, str] | None = None, most: int = 5) -> Preview:
    """The data at `source` (file, folder or hub id, without ``data:``) and the task that it makes with `columns` (role -> column).

    Raises SettingsError in one sentence where the source itself cannot be read; columns that make no task yet are `problem`.
    """
    table = table_of(source)
    chosen = dict(columns or {})
    first = next(iter(table.parts.values()), [])[:most]
    rows = [{name: _shown(row.get(name)) for name in table.columns} for row in first]
    parts = {part: len(found) for part, found in table.parts.items()}
    roles: Mapping[str, str] = {name: column for name, column in chosen.items() if column in table.columns}
    try:
        roles = shape_of(table, chosen).columns
        task = own_task(f"data:{source}", source, chosen)
    except SettingsError as error:
        return Preview(table.columns, rows, parts, roles, problem=str(error))
    return Preview(
        table.columns,
        rows,
        parts,
        roles,
        task.kind,
        task.metric,
        METRIC_LABELS[task.metric],
        task.summary,
        task.remark,
    )


def _shown(value: object) -> str:
    text = as_text(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
