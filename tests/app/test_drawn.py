"""Figures as the page sends them: the same picture, made once, and with nothing in it for which a browser would draw it twice."""

import hashlib
import json
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import plotly.io
import pytest

from app import charts
from app.charts import theme
from app.drawn import SELECTED_BY_CLICK, _tell, drawn, drawn_once
from tests.app.test_charts import figures, layers  # noqa: F401 (a fixture)


@pytest.mark.parametrize("dark", [False, True])
def test_streamlits_copy_of_a_figure_holds_nothing_that_plotly_takes_for_new(layers, dark):  # noqa: F811
    for name, figure in figures(layers, dark).items():
        sent = json.loads(plotly.io.to_json(drawn_once(figure).to_dict(), validate=False))
        assert "bdata" not in json.dumps(sent["data"]), name
        assert "template" not in sent["layout"], name
        assert "datarevision" in sent["layout"], name


def test_it_is_the_same_picture(layers):  # noqa: F811
    for name, figure in figures(layers, True).items():
        plain = drawn_once(figure)
        assert plain.layout.font.color == theme.INK[True], name
        assert plain.layout.xaxis.title.text == figure.layout.xaxis.title.text
        assert plain.layout.xaxis.gridcolor == theme.GRID[True]
        assert plain.layout.yaxis.automargin
        own = figure.layout.margin.t or figure.layout.template.layout.margin.t
        assert (plain.layout.margin.t, plain.layout.height) == (own, figure.layout.height), name
        for before, after in zip(figure.data, plain.data, strict=True):
            assert (before.type, before.name) == (after.type, after.name)
            for axis in ("x", "y", "z"):
                if axis in before:
                    np.testing.assert_array_equal(before[axis], after[axis])


def test_what_was_drawn_is_drawn_again_only_for_other_data_options_or_colours():
    frame = pd.DataFrame({"method": ["lora"], "label": ["LoRA"], "bytes": [1e6]})
    made = []

    def bars(frame, **options):
        made.append(options)
        return charts.storage_bars(frame, **options)

    def shown(frame, dark=False, by_click=False, **options):
        return drawn(partial(bars, frame, **options), dark=dark, by_click=by_click)

    first = shown(frame)
    assert shown(frame.copy()) is first
    assert len(made) == 1
    others = [
        shown(frame.assign(bytes=1e6 + 1)),
        shown(frame.assign(label="LoRa")),
        shown(frame, label="file (B)"),
        shown(frame, dark=True),
        shown(frame, by_click=True),
    ]
    assert len({id(figure) for figure in [first, *others]}) == len(made) == 6
    assert {name: others[-1].layout[name] for name in SELECTED_BY_CLICK} == SELECTED_BY_CLICK


def test_values_that_look_alike_are_told_apart():
    def shown(*values):
        return drawn(partial(lambda *_, dark: theme.figure(dark, height=90, x="", y=""), *values), dark=False, by_click=False)

    told = [
        (1, 23),
        (12, 3),
        ("1", 23),
        ([1], 23),
        ([[1], 23],),
        (np.array([1, 23]),),
        (np.array([1.0, 23.0]),),
        ({"a": 1}, 23),
    ]
    assert len({id(shown(*values)) for values in told}) == len(told)


def test_the_room_for_words_beside_the_rows_is_enough_and_not_twice_of_it():
    """Widths in pixels at 12 as Chromium measures them in the page's font."""
    measured = {
        "attention.output.dense": 116.5,
        "intermediate.dense": 97.8,
        "Full fine-tuning": 76.0,
        "LoRA-XS (closed form)": 110.0,
    }
    for text, width in measured.items():
        assert width <= theme.text_width(text) <= 1.25 * width
    assert theme.text_width("a &lt; b") == theme.text_width("a < b")


def test_what_differs_deep_inside_is_another_figure():
    """Neither rows' names nor the middle of a long array stand in the text of what holds them."""

    @dataclass(frozen=True)
    class Curve:
        values: np.ndarray

    def told(value):
        said = hashlib.sha256()
        _tell(said.update, value)
        return said.hexdigest()

    long = np.arange(5000.0)
    other = np.where(long == 2500, -1.0, long)
    assert repr(Curve(long)) == repr(Curve(other))
    assert told(Curve(long)) == told(Curve(long.copy()))
    assert told(Curve(long)) != told(Curve(other))
    frame = pd.DataFrame({"value": [1, 2]}, index=["a", "b"])
    assert told(frame) == told(frame.copy())
    assert told(frame) != told(frame.set_axis(["a", "c"]))
