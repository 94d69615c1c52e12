"""Figures as the page sends them: each made once for the same data, and in the words that let the browser draw it once.

Streamlit's client gives plotly a copy of every figure after the first drawing, and plotly draws that copy as well wherever it takes
something for new: any template, any array in the binary form that plotly's Python package prefers, and, without a ``datarevision``, any
array at all. So here the template is written out into the layout, arrays are lists, and the revision stays: a figure never changes, another
figure is another element of the page. What Streamlit would set for selections when a figure stands is set before.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

AT_MOST = 64  # figures that are kept, of all sessions
SELECTED_BY_CLICK = {"clickmode": "event+select", "hovermode": "closest", "dragmode": "pan"}


def drawn(make: functools.partial[go.Figure], *, dark: bool, by_click: bool) -> go.Figure:
    """What `make` draws, not to be changed. make: a function of `app.charts` and all that it is told but for `dark`.

    by_click: whether points of it can be chosen.
    """
    said = hashlib.sha256()
    _tell(said.update, (make.func.__module__, make.func.__qualname__, make.args, make.keywords, dark, by_click))
    return _drawn(said.hexdigest(), make, dark, by_click)


@st.cache_resource(max_entries=AT_MOST, show_spinner=False)
def _drawn(key: str, _make: Callable[..., go.Figure], _dark: bool, _by_click: bool) -> go.Figure:
    return drawn_once(_make(dark=_dark), SELECTED_BY_CLICK if _by_click else {})


def drawn_once(chart: go.Figure, further: Mapping[str, Any] | None = None) -> go.Figure:
    """The same picture in the words described above. further: more of its layout."""
    said = chart.layout.to_plotly_json()
    template = said.pop("template", {}).get("layout", {})
    layout = _merged(template, {**said, **(further or {}), "datarevision": 1})
    plain = go.Figure(data=[_as_lists(trace.to_plotly_json()) for trace in chart.data], layout=layout)
    plain.layout.template = None  # without this, plotly's own
    return plain


def _as_lists(value: Any) -> Any:
    """`value` with lists for all arrays in it."""
    if isinstance(value, Mapping):
        return {key: _as_lists(one) for key, one in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, `above` where both say something."""
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            both[key] = _merged(below[key], above[key])
    return both


def _tell(tell: Callable[[bytes], object], value: Any) -> None:
    """Tells all that `value` holds, so that two values tell the same only where they are the same."""
    if isinstance(value, pd.DataFrame):
        _tell(tell, value.index)
        for name, column in value.items():
            _tell(tell, (name, str(column.dtype), column))
    elif isinstance(value, pd.Series | pd.Index):
        _tell(tell, value.to_numpy())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        _tell(tell, (str(value.dtype), value.shape))
        tell(value.tobytes())
    elif isinstance(value, np.ndarray | list | tuple):
        tell(f"[{len(value)}".encode())
        for one in value:
            _tell(tell, one)
    elif isinstance(value, Mapping):
        _tell(tell, list(value.items()))
    elif dataclasses.is_dataclass(value):  # its repr would leave out the middle of long arrays
        _tell(tell, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    else:
        said = repr(value)
        tell(f"{len(said)}:{said}".encode())
