"""What is kept on this machine so that it is not computed or fetched twice: listed on the Model page, cleared, kept below a limit."""

from __future__ import annotations

import time

import pandas as pd
import streamlit as st

from app import components
from app.forms import bound
from app.text import markdown
from app.units import bytes_text
from loraxs_core import cache_room
from loraxs_core.paths import cache_dir
from loraxs_core.progress import seconds

AGES = {"whatever its age": 0.0, "not used for a day": 86400.0, "not used for 30 days": 30 * 86400.0}


def show() -> None:
    """A switch, and below it the list: looked up only when somebody asks, as a large cache takes a while to walk."""
    if not st.toggle("What is kept on this machine", **bound("kept")):
        return
    with components.errors(), st.container(border=True):
        if said := st.session_state.pop("kept-said", None):
            st.success(markdown(said), icon=":material/delete_sweep:")
        found = cache_room.items()
        st.markdown(f"**{bytes_text(sum(item.bytes for item in found))}** in {markdown(cache_dir())}")
        components.table(_frame(found), "cache.csv", key="kept-table")
        _clear(found)
        _limit()
        components.reproduce("loraxs cache", "from loraxs_core.cache_room import groups, items\n\nprint(groups(items()))")


def _frame(found: list[cache_room.Item]) -> pd.DataFrame:
    now = time.time()
    rows = [
        {
            "kind": group.kind,
            "model": group.model,
            "entries": group.entries,
            "size": bytes_text(group.bytes),
            "size (bytes)": group.bytes,
            "last used": f"{seconds(max(0.0, now - group.used))} ago",
            "what it is": cache_room.KINDS[group.kind],
        }
        for group in cache_room.groups(found)
    ]
    return pd.DataFrame(rows, columns=["kind", "model", "entries", "size", "size (bytes)", "last used", "what it is"])


def _clear(found: list[cache_room.Item]) -> None:
    """Two choices, what they come to, and the button that does it."""
    there = [kind for kind in cache_room.KINDS if any(item.kind == kind for item in found)]
    left, right = st.columns(2)
    kinds = left.multiselect(
        "Kinds to clear", there, default=[kind for kind in there if kind != cache_room.SAMPLES], key="kept-kinds"
    )
    age = right.selectbox("Of these, what is", list(AGES), key="kept-age")
    chosen = cache_room.chosen(found, kinds, unused_for=AGES[age])
    what = f"{len(chosen):,} {'entry' if len(chosen) == 1 else 'entries'}, {bytes_text(sum(item.bytes for item in chosen))}"
    st.button(
        f"Clear {what}",
        icon=":material/delete_sweep:",
        key="kept-clear",
        disabled=not chosen,
        on_click=_do_clear,
        args=(tuple(kinds), AGES[age]),
        help="All of it can be computed or fetched again.",
    )


def _do_clear(kinds: tuple[str, ...], unused_for: float) -> None:
    with components.errors():
        gone = cache_room.clear(kinds, unused_for=unused_for)
        st.session_state["kept-said"] = f"Removed {len(gone):,} entries, {bytes_text(sum(item.bytes for item in gone))}."


def _limit() -> None:
    now = cache_room.limit()
    with st.form("kept-limit", border=False):
        field, button = st.columns([3, 1], vertical_alignment="bottom")
        typed = field.text_input(
            "Keep it below (samples not counted; what was used longest ago goes first)",
            value="none" if now is None else bytes_text(now).replace(" ", ""),
            key="kept-most",
        )
        if button.form_submit_button("Set", width="stretch"):
            gone = cache_room.set_limit(cache_room.size(typed))
            st.success(f"The limit is {markdown(typed)}; {len(gone):,} entries had to go.", icon=":material/check:")
