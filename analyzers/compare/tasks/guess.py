"""Which column of foreign data is probably what: by its name first, then by what it holds. A proposal for a form, nothing that counts.

What is trained on follows from the columns that are named (`columns.shape_of`); a page shows the proposal as choices made already.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from analyzers.compare.tasks.columns import FORMS, Form, as_text, shape_of
from analyzers.compare.tasks.tables import Table
from loraxs_core.errors import SettingsError

LOOKED_AT = 500  # rows
MOST_CLASSES = 50
NAMES = {
    "text": ("text", "sentence", "sentence1", "review", "content", "body", "comment", "tweet", "premise", "question1", "title", "document"),
    "text_b": ("text_b", "sentence2", "hypothesis", "question2", "text2"),
    "label": ("label", "labels", "target", "class", "category", "stars", "rating", "score", "sentiment", "intent", "price", "y"),
    "prompt": ("prompt", "instruction", "question", "query", "input"),
    "completion": ("completion", "response", "answer", "output", "chosen"),
    "context": ("context", "input", "passage"),
    "messages": ("messages", "conversations", "conversation", "chat", "dialog"),
    "tools": ("tools", "functions"),
    "split": ("split",),
}  # fmt: skip

HOLD = {
    "messages": ("list",),
    "prompt": ("text", "number", "list"),
    "completion": ("text", "number", "list"),
    "tools": ("text", "list"),
}  # else text or numbers


def forms_of(table: Table) -> list[Form]:
    """The forms that the rows of `table` can be given by choosing columns: text alone only where no column is called label."""
    return [
        form
        for form in FORMS
        if len(table.columns) >= len(form.roles) and not (form.name == "text" and "label" in table.columns)
    ]


def proposed(table: Table) -> tuple[Form, dict[str, str]]:
    """(form, role -> column): what the columns say by themselves, else the first form that their names and contents fit."""
    try:
        shape = shape_of(table, {})
        if shape.form.name != "text" or len(table.columns) == 1:
            return shape.form, dict(shape.columns)
    except SettingsError:
        pass
    named = _named(table)
    fitting = [form for form in forms_of(table) if set(form.roles) <= set(named)]
    unsure = not fitting or fitting[0].name == "text"  # beside a review, a verdict is a label whatever it is called
    if unsure and (form_and_columns := _by_content(table, named)):
        return form_and_columns
    form = next(iter([*fitting, *forms_of(table)]), FORMS[-1])
    return form, {role: named[role] for role in (*form.roles, *form.extra) if role in named}


def asked(table: Table, form: Form, columns: Mapping[str, str]) -> dict[str, str]:
    """What has to be said for `table` to be read as `form` by `columns`: nothing where its columns' own names say so."""
    try:
        shape = shape_of(table, {})
        if shape.form is form and dict(shape.columns) == dict(columns):
            return {}
    except SettingsError:
        pass
    return dict(columns)


def suggestion(table: Table) -> str:
    """The options that would say what the columns' usual names, else their contents, speak for, in a sentence; empty where they say
    nothing."""
    named = _named(table)
    form = next((form for form in forms_of(table) if set(form.roles) <= set(named)), None)
    if form is None:
        form, named = proposed(table)
    if not set(form.roles) <= set(named):
        return ""
    options = [
        f"--{role.replace('_', '-')} {shlex.quote(named[role])}"
        for role in (*form.roles, *form.extra)
        if named.get(role, role) != role
    ]
    return f"Perhaps {' '.join(options)}." if options else ""


def _named(table: Table) -> dict[str, str]:
    """role -> column, by the usual names of columns; no column has two roles."""
    lower = {column.strip().lower(): column for column in reversed(list(table.columns))}
    found: dict[str, str] = {}
    for role, names in NAMES.items():
        column = next((lower[name] for name in names if name in lower and lower[name] not in found.values()), None)
        if column is not None and table.columns[column] in HOLD.get(role, ("text", "number")):
            found[role] = column
    return found


def _by_content(table: Table, named: Mapping[str, str]) -> tuple[Form, dict[str, str]] | None:
    """Texts with a label, where one column holds texts and another few different values; None where that is not seen."""
    rows = [row for part in table.parts.values() for row in part[:LOOKED_AT]][:LOOKED_AT]
    values = {
        name: [as_text(row.get(name)) for row in rows] for name, kind in table.columns.items() if kind not in ("list", "record")
    }
    lengths = {name: sum(map(len, texts)) / max(1, len(texts)) for name, texts in values.items()}
    text = named.get("text") or max(lengths, key=lambda name: lengths[name], default=None)
    others = {name: len(set(texts)) for name, texts in values.items() if name not in (text, named.get("split"))}
    few = {name: count for name, count in others.items() if 2 <= count <= min(MOST_CLASSES, len(rows) // 2)}
    label = named.get("label") or min(few, key=lambda name: few[name], default=None)
    if text is None or label is None or label == text:
        return None
    columns = {"text": text, "label": label}
    return FORMS[0], columns | {role: named[role] for role in FORMS[0].extra if role in named}
