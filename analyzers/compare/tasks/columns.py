"""Which column of a table is what, and what kind of task that makes: forms of rows, the roles of their columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analyzers.compare.tasks.metrics import CAUSAL, CLASSIFICATION
from analyzers.compare.tasks.tables import Table
from loraxs_core.errors import SettingsError

ROLES = ("text", "text_b", "label", "prompt", "completion", "context", "messages", "tools", "split")
WISHES = (
    "a task needs text and label, and may have text_b and split; or prompt and completion, or messages, or text alone for a decoder; "
    "--text NAME and the like say which column is which."
)


@dataclass(frozen=True)
class Form:
    """What rows can be. roles: that a table needs a column for; extra: that it may have one for. what: in words."""

    name: str
    roles: tuple[str, ...]
    extra: tuple[str, ...]
    kind: str
    what: str


FORMS = (
    Form("labelled", ("text", "label"), ("text_b", "split"), CLASSIFICATION, "texts with a label"),
    Form("messages", ("messages",), ("tools", "split"), CAUSAL, "conversations; the assistant's turns are learnt"),
    Form(
        "prompts",
        ("prompt", "completion"),
        ("context", "tools", "split"),
        CAUSAL,
        "prompts and what is to be written after them",
    ),
    Form("text", ("text",), ("split",), CAUSAL, "text to be continued"),
)


@dataclass(frozen=True)
class Shape:
    """What the columns make of a table: role -> column, and the kind of task. what: the kind in words."""

    form: Form
    columns: Mapping[str, str]

    @property
    def kind(self) -> str:
        return self.form.kind

    @property
    def what(self) -> str:
        return self.form.what


def shape_of(table: Table, chosen: Mapping[str, str]) -> Shape:
    """What `table` is, by the columns `chosen` and by those that are called after their role. Raises SettingsError."""
    odd = [role for role in chosen if role not in ROLES]
    if odd:
        raise SettingsError(f"There is no role {odd[0]!r} for a column; there are {', '.join(ROLES)}.")
    for role, column in chosen.items():
        if column not in table.columns:
            raise SettingsError(f"{table.source} has no column {column!r} for {role} ({_gives(table)}).")
    there = {role: role for role in ROLES if role in table.columns} | dict(chosen)
    asked = {role for role in chosen if role not in {extra for form in FORMS for extra in form.extra}}

    def has(*roles: str) -> bool:
        return all(role in there for role in roles) and (not asked or asked <= set(roles))

    for form in FORMS:
        if has(*form.roles) and not (form.name == "text" and "label" in asked):
            return Shape(form, {role: there[role] for role in (*form.roles, *form.extra) if role in there})
    missing = next(
        (
            role
            for group in (("text", "label"), ("prompt", "completion"))
            if asked & set(group)
            for role in group
            if role not in there
        ),
        "text",
    )
    raise SettingsError(f"{table.source} has no column {missing!r} ({_gives(table)}); {WISHES}")


def _gives(table: Table) -> str:
    names = ", ".join(table.columns) or "nothing"
    return f"its first line gives {names}" if table.lines else f"it has {names}"


def as_text(value: object) -> str:
    """A field as a CSV file would hold it: nothing for a missing one, whole numbers without a point."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)
