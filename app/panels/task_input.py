"""Which task, as an input: one that the program knows, or data of the user's own."""

from __future__ import annotations

import streamlit as st

from analyzers.compare import TASKS, open_task
from analyzers.compare.tasks import own_source, task_name
from app.forms import bound
from app.panels import own_data
from app.text import markdown
from loraxs_core.errors import SettingsError


def show() -> tuple[dict, bool]:
    """(task, data and columns as `SweepSettings` takes them, whether they can be run); what is wrong is said in its place.

    What is chosen on one page is chosen on the others.
    """
    typed = st.selectbox(
        "Task",
        [*TASKS, *own_data.known(TASKS)],
        index=list(TASKS).index("stsb"),
        accept_new_options=True,
        **bound("task", own_data.words),
        help="Or type the path of a file or folder of your own, or a hub id such as owner/name.",
    )
    task = task_name(typed, TASKS)
    own_data.drop_here()
    try:
        if (source := own_source(task)) is not None:
            columns, seen = own_data.show(source)
            return {"task": task, "columns": columns}, not seen.problem
        found = open_task(task)
    except SettingsError as error:
        st.error(markdown(error), icon=":material/error:")
        return {"task": task}, False
    st.caption(markdown(found.summary))
    if found.remark:
        st.warning(markdown(found.remark), icon=":material/warning:")
    missing = found.missing()
    if not missing and not st.session_state.get("task-data"):
        return {"task": task}, True
    data = st.text_input(
        "File or folder with its data", placeholder="/path/to/data", **bound("task-data"), help="With the task's own columns."
    )
    if missing and not data:
        st.warning(markdown(missing), icon=":material/cloud_off:")
    return {"task": task, "data": data or None}, bool(data) or not missing
