"""What is typed into the pages, so that nothing of it is lost.

Every input's value stands in the address (Streamlit's ``bind``), so that a reload and a copied link show the same settings. An
address holds the inputs on show on one page; those of the other pages and of tabs that are not open are kept for the person in the
data folder, and come back with the next session. What an address says, or says by leaving it out, goes first, but for the back
button: that leads to another page, and what was typed since stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from app.remembered import remember as keep
from app.remembered import remembered

if TYPE_CHECKING:
    from streamlit.elements.layouts import ExpanderContainer

# In the session: the inputs of this run with their words, the value of each that was not typed, what is kept on disk, the page.
_SEEN, _DEFAULTS, _SAVED, _PAGE = "forms-seen", "forms-defaults", "forms-saved", "forms-page"


def begin(page: str) -> dict[str, str | list[str]]:
    """Once per run, before anything of `page` is drawn; in a new session brings back what was typed before.

    Returns what the address has to say of `page` where another page was left for it, or a session of before brought it back: written at
    once, it is one step of the browser's history; Streamlit by itself makes a step of every input, and none of a tab.
    """
    if getattr(get_script_run_ctx(), "is_history_navigation", False):
        st.rerun()  # as a visit like any other: as a step back it would set every input that the old address leaves out to its default
    begun = _SAVED in st.session_state
    if not begun:
        _restore(page)
    entered = begun and st.session_state[_PAGE] != page
    st.session_state[_PAGE], st.session_state[_SEEN] = page, {}
    typed = st.session_state[_SAVED].get(page, {})
    if begun and not entered:
        _clean(typed)
    if begun and not entered:
        return {}
    return {key: entry["words"] for key, entry in typed.items() if entry["shown"] and key in st.session_state}


def bound(key: str, words: Callable[[Any], Any] | None = None) -> dict:
    """The arguments by which an input keeps its value: ``st.number_input("Steps", 1, 100, 7, **bound("steps"))``.

    words: the input's ``format_func``, where it has one.
    """
    st.session_state[_SEEN][key] = words or str
    defaults = st.session_state.setdefault(_DEFAULTS, {})
    if key not in st.session_state and key not in st.query_params and key not in defaults:
        defaults[key] = None  # what it will have when this run ends
    return {"key": key, "bind": "query-params"} | ({"format_func": words} if words else {})


def folded(label: str, icon: str, defaults: Mapping[str, Any]) -> ExpanderContainer | None:
    """An expander for inputs of these keys and defaults; None while there is no need to draw them: it is closed, and nothing was typed.

    A browser takes as long for inputs that nobody sees as for others. What was typed is drawn whether the expander is open or not, so
    that the address says it; read an input's value with `value`.
    """
    place = st.expander(label, icon=icon, key=f"folded-{next(iter(defaults))}", on_change="rerun")
    typed = any(key in st.query_params or value(key, usual) != usual for key, usual in defaults.items())
    return place if place.open or typed else None


def value(key: str, default: Any) -> Any:
    """What an input holds, or would hold if it were drawn."""
    return st.session_state.get(key, default)


def only(key: str, options: Collection[Any]) -> None:
    """Drops a choice that was made among others than these `options`."""
    if key in st.session_state and st.session_state[key] not in options:
        del st.session_state[key]


def limited(key: str, low: float, high: float) -> dict:
    """As `bound`, for a number whose limits depend on the model: a value typed for another model that is beyond them is dropped."""
    value = st.session_state.get(key)
    if value is not None and not low <= value <= high:
        del st.session_state[key]
    return bound(key)


def remember() -> None:
    """Keeps what is typed by now; once per run, at its end."""
    saved, page = st.session_state[_SAVED], st.session_state[_PAGE]
    seen, defaults = st.session_state[_SEEN], st.session_state[_DEFAULTS]
    own = {key: {**entry, "shown": key in seen} for key, entry in saved.get(page, {}).items()}
    for key in set(seen) & set(st.session_state):
        value = st.session_state[key]
        if key in defaults and defaults[key] is None:
            if key in st.query_params:
                del defaults[key]  # it was typed before the first run had ended: an address names no default
            else:
                defaults[key] = (value,)
        if defaults.get(key) == (value,):
            own.pop(key, None)
        else:
            own[key] = {"value": value, "words": _words(value, seen[key]), "shown": True}
    now = {**saved, page: own}
    if now != saved:
        st.session_state[_SAVED] = now
        _keep(page, saved.get(page, {}), own)


def follow_defaults() -> None:
    """For another model: what was not typed takes that model's defaults."""
    defaults = st.session_state[_DEFAULTS]
    for key in set(defaults) - set(st.session_state[_SEEN]):
        if defaults.pop(key) == (st.session_state.get(key),):
            st.session_state.pop(key, None)


def drop(*keys: str) -> None:
    """Forgets what was typed into these inputs, as it means nothing for another model."""
    for key in keys:
        st.session_state.pop(key, None)
    saved = st.session_state[_SAVED]
    kept = {page: {key: entry for key, entry in entries.items() if key not in keys} for page, entries in saved.items()}
    st.session_state[_SAVED] = kept


def forget() -> bool:
    """Drops all that was typed, on disk too; whether there was any. For values that the page of today has no place for."""
    saved = st.session_state[_SAVED]
    for key in [key for entries in saved.values() for key in entries]:
        st.session_state.pop(key, None)
    st.session_state[_SAVED] = {}
    keep(forms={})
    return bool(saved)


def _keep(page: str, before: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Writes what has changed on `page`; what another tab has written in the meantime stays."""
    kept = remembered("forms", dict) or {}
    own = dict(kept.get(page, {}))
    for key in before.keys() | now.keys():
        if key not in now:
            own.pop(key, None)
        elif now[key] != before.get(key):
            own[key] = now[key]
    keep(forms={**kept, page: own})


def _clean(typed: Mapping[str, object]) -> None:
    """Takes out of the address what belongs to other pages: the browser's history has such a step between two pages."""
    others = {key for entries in st.session_state[_SAVED].values() for key in entries} - set(typed)
    for key in others & set(st.query_params):
        del st.query_params[key]


def _words(value: Any, words: Callable[[Any], str]) -> str | list[str]:
    """A value as Streamlit has it in an address."""
    if isinstance(value, list):
        return [words(one) for one in value]
    return str(value).lower() if isinstance(value, bool) else "" if value is None else words(value)


def _restore(page: str) -> None:
    saved = remembered("forms", dict) or {}
    linked = "model" in st.query_params
    for name, entries in saved.items():
        for key, entry in entries.items():
            told = linked and name == page and entry["shown"]  # by the address, if by leaving it out
            if key not in st.query_params and key not in st.session_state and not told:
                st.session_state[key] = entry["value"]
    st.session_state[_SAVED], st.session_state[_DEFAULTS] = saved, {}
