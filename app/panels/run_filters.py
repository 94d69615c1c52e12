"""Which of the comparisons are listed: by model, task, method, state, date."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import streamlit as st

from analyzers.compare import TASKS, RunFolder
from analyzers.compare.tasks import own_source
from app.forms import bound


def chosen(runs: list[RunFolder]) -> list[RunFolder]:
    """The filters, and those of `runs` that pass all of them; a filter that says nothing lets all pass."""
    facts = {run.name: _facts(run) for run in runs}
    wanted: dict[str, list[str]] = {}
    columns = st.columns(4)
    for column, (name, label) in zip(columns, LABELS.items(), strict=True):
        offered = sorted({value for fact in facts.values() for value in fact[name]})
        key = f"runs-{name}"
        if key in st.session_state:
            st.session_state[key] = [value for value in st.session_state[key] if value in offered]
        wanted[name] = column.multiselect(label, offered, placeholder="any", **bound(key))
    since, until = st.columns(2)
    first = since.date_input("Started from", None, key="runs-from")
    last = until.date_input("Started until", None, key="runs-until")
    return [run for run in runs if _passes(facts[run.name], wanted) and _between(run, first, last)]


LABELS = {"model": "Model", "task": "Task", "method": "Method", "state": "State"}


def task_label(task: str) -> str:
    """A task as lists call it; of a file of one's own its name, as where it is kept is long."""
    return TASKS[task].label if task in TASKS else Path(source).name if (source := own_source(task)) else task


def _facts(run: RunFolder) -> dict[str, list[str]]:
    settings = run.settings
    return {
        "model": [settings.model],
        "task": [task_label(settings.task)],
        "method": [settings.method(name).label for name in settings.methods],
        "state": [str(run.status().state)],
    }


def _passes(facts: dict[str, list[str]], wanted: dict[str, list[str]]) -> bool:
    return all(not values or set(values) & set(facts[name]) for name, values in wanted.items())


def _between(run: RunFolder, first: Any, last: Any) -> bool:
    day: date = run.created.astimezone().date()
    return (first is None or first <= day) and (last is None or day <= last)
