"""The door for data of the user's own: a file dropped, or a path, folder or hub id typed as the task; its first rows, and which column is what."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd
import streamlit as st

from analyzers.compare import TASKS, Preview, keep_data, preview, spoken_columns
from analyzers.compare.tasks.columns import FORMS, ROLES, Form
from app import forms
from app.forms import bound
from app.remembered import remember, remembered
from app.text import markdown, plain
from loraxs_core.errors import WorkbenchError
from loraxs_core.paths import data_dir

KINDS = ["csv", "jsonl", "json", "ndjson", "parquet", "txt", "gz", "bz2", "xz", "zst"]
LABELS = {
    "labelled": "Texts with a label",
    "messages": "Conversations",
    "prompts": "Prompts and completions",
    "text": "Text alone",
}
NAMES = {"text": "Text", "text_b": "Second text", "label": "Label", "prompt": "Prompt", "completion": "Completion", "context": "Context", "messages": "Messages", "tools": "Tools", "split": "Split"}  # fmt: skip
LISTED = 8  # sources that are offered again
FORM, OF, SAID = "data-form", "data-of", "data-said"
BESIDE_NAME = "  ·  "
KEYS = {role: f"data-{role}" for role in ROLES}


def words(task: str) -> str:
    """A task in the list. Of a file that was dropped, the name comes first: where it is kept is long, and a list cuts the end."""
    if task in TASKS:
        return TASKS[task].label
    dropped = task.startswith(f"data:{data_dir('data')}")
    return f"{Path(task).name}{BESIDE_NAME}{task}" if dropped else task


def known(tasks: Collection[str]) -> list[str]:
    """Data of the user's own that the list of tasks offers: what was read before, and what is typed now."""
    typed = st.session_state.get("task") or st.query_params.get("task")
    if isinstance(typed, str) and words(task := typed.rpartition(BESIDE_NAME)[2]) == typed:
        typed = task  # as an address has it
    now = (
        [typed]
        if isinstance(typed, str) and typed not in tasks and typed not in {task.label for task in TASKS.values()}
        else []
    )
    return list(dict.fromkeys([*now, *(remembered("own-data", list) or [])]))


def drop_here() -> None:
    """The place to drop a file; it becomes the task. An error stays beside it, and what is typed stays typed."""
    with st.expander("Your own data", icon=":material/upload_file:", expanded=bool(st.session_state.get(SAID))):
        st.caption("Drop a file, or type its path, a folder's, or a hub id (owner/name) as the task.")
        st.file_uploader(
            "CSV, JSON lines, Parquet or text", KINDS, key="data-file", on_change=_take, label_visibility="collapsed"
        )
        if said := st.session_state.get(SAID):
            st.error(markdown(said), icon=":material/error:")


def _take() -> None:
    st.session_state.pop(SAID, None)
    dropped = st.session_state.get("data-file")
    if dropped is None:
        return
    try:
        st.session_state["task"] = f"data:{keep_data(dropped.name, dropped.getvalue())}"
    except WorkbenchError as error:
        st.session_state[SAID] = str(error)


def show(source: str) -> tuple[dict[str, str], Preview]:
    """First rows, columns and what follows from them, of the data at `source`; returns (columns of `SweepSettings`, the preview).

    Raises SettingsError where the source cannot be read. What is inferred is chosen already; what makes no task is `Preview.problem`.
    """
    if st.session_state.get(OF, source) != source:
        forms.drop(FORM, *KEYS.values())
    st.session_state[OF] = source
    with st.spinner("Reading the data…", show_time=True):
        seen = preview(source)
    before = remembered("own-data", list) or []
    if (task := st.session_state["task"]) not in before:
        remember(**{"own-data": [task, *before][:LISTED]})
    st.dataframe(
        pd.DataFrame(seen.rows, columns=list(seen.columns)).map(plain),
        hide_index=True,
        height=35 * min(4, len(seen.rows) + 1) + 2,
        key="data-rows",
        alt="First rows of the data",
    )
    rows = sum(seen.parts.values())
    splits = ", ".join(f"{name} {count:,}" for name, count in seen.parts.items() if name)
    st.caption(f"{rows:,} rows{f' ({markdown(splits)})' if splits else ''}; the first {len(seen.rows)} above.")
    form = _form(seen)
    chosen = _columns(seen, form)
    said = spoken_columns(source, form, chosen)
    found = preview(source, said)
    if found.remark:
        st.warning(markdown(found.remark), icon=":material/warning:")
    if found.problem:
        st.warning(markdown(found.problem), icon=":material/warning:")
    else:
        st.caption(
            f"{markdown(found.kind.capitalize())}, scored by **{markdown(found.metric_label)}**. {markdown(found.summary)}"
        )
    return said, found


def values(source: str | None, columns: Mapping[str, str]) -> dict[str, object]:
    """The inputs that say `columns` of the data at `source`, by key: for settings that are put back into the form."""
    form = next((form for form in FORMS if set(form.roles) <= set(columns)), None)
    named: dict[str, object] = {KEYS[role]: column for role, column in columns.items()}
    return named | ({FORM: form.name} if form else {}) | ({OF: source} if source else {})


def _form(seen: Preview) -> Form:
    """What the rows are taken for."""
    offered = {form.name: form for form in seen.forms} or {FORMS[-1].name: FORMS[-1]}
    guessed = seen.proposed[0].name
    forms.only(FORM, offered)
    name = st.selectbox(
        "The rows are",
        list(offered),
        index=list(offered).index(guessed) if guessed in offered else 0,
        **bound(FORM, lambda form: LABELS[form]),
    )
    return offered[name]


def _columns(seen: Preview, form: Form) -> dict[str, str]:
    """role -> column, as chosen; a role that the form can do without has no column unless one is chosen."""
    guessed, there = seen.proposed[1], list(seen.columns)
    chosen: dict[str, str] = {}
    for column, role in zip(st.columns(2) * len(ROLES), (*form.roles, *form.extra), strict=False):
        needed = role in form.roles
        options: list[str | None] = [*there] if needed or role in there else [None, *there]
        first = guessed.get(role) or (role if role in there else None)
        index = options.index(first) if first in options else min(len(chosen), len(options) - 1) if needed else 0
        forms.only(KEYS[role], options)
        picked = column.selectbox(NAMES[role], options, index=index, **bound(KEYS[role], _column_words))
        if picked is not None:
            chosen[role] = picked
    return chosen


def _column_words(name: str | None) -> str:
    return "none" if name is None else name
