"""What a page shows of data before anything is trained on it: columns, first rows, and what task they would make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyzers.compare.tasks.columns import FORMS, Form, as_text, shape_of
from analyzers.compare.tasks.guess import asked, forms_of, proposed
from analyzers.compare.tasks.metrics import METRIC_LABELS
from analyzers.compare.tasks.own import own_task, table_of
from loraxs_core.errors import SettingsError

MOST_CHARACTERS = 300  # of a field


@dataclass(frozen=True)
class Preview:
    """columns: name -> what it holds. rows: the first ones, every field as text. parts: rows in each split, ``""`` for a source
    without splits. roles: role -> column, as far as it can be told. kind, metric, metric_label: of the task that follows, empty where
    none does; summary: the task in a sentence; remark: what is left out. forms: what its rows can be taken for; proposed: the
    form and the columns that its names and contents speak for. problem: one sentence on why it makes no task yet."""

    columns: Mapping[str, str]
    rows: list[dict[str, str]]
    parts: Mapping[str, int]
    roles: Mapping[str, str]
    forms: Sequence[Form] = ()
    proposed: tuple[Form, Mapping[str, str]] = (FORMS[0], {})
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
    known: dict[str, Any] = {"forms": forms_of(table), "proposed": proposed(table)}
    roles: Mapping[str, str] = {name: column for name, column in chosen.items() if column in table.columns}
    try:
        roles = shape_of(table, chosen).columns
        task = own_task(f"data:{source}", source, chosen)
    except SettingsError as error:
        return Preview(table.columns, rows, parts, roles, **known, problem=str(error))
    return Preview(
        table.columns,
        rows,
        parts,
        roles,
        **known,
        kind=task.kind,
        metric=task.metric,
        metric_label=METRIC_LABELS[task.metric],
        summary=task.summary,
        remark=task.remark,
    )


def spoken_columns(source: str, form: Form, columns: Mapping[str, str]) -> dict[str, str]:
    """role -> column, as `SweepSettings.columns` has to say it for the data at `source` to be read as `form` by `columns`: nothing
    where the columns' own names say so. Raises SettingsError where the source cannot be read."""
    return asked(table_of(source), form, columns)


def _shown(value: object) -> str:
    text = as_text(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
