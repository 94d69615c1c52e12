"""The figures of what a fleet costs."""

from __future__ import annotations

import pandas as pd
import pytest

from app import charts


@pytest.mark.parametrize("dark", [False, True])
def test_a_fleet_s_bytes_have_prefixes_up_to_any_size(dark):
    """A million full copies of a 175B model are 10^17 bytes and more; plotly's own prefixes end at 10^12."""
    frame = pd.DataFrame(
        [
            {"method": method, "label": label, "adapters": count, "bytes": count * one}
            for method, label, one in (("full", "Full fine-tune", 7 * 10**11), ("lora-xs", "LoRA-XS", 240_000))
            for count in (1, 1000, 10**9)
        ]
    )
    chart = charts.fleet_curves(frame, marker=1000.0, dark=dark)
    words = dict(zip(chart.layout.yaxis.tickvals, chart.layout.yaxis.ticktext, strict=True))
    assert words[1e3] == "1k"
    assert words[1e15] == "1P"
    assert words[1e21] == "1Z"
    assert max(words) >= frame["bytes"].max()
    assert [line.name for line in chart.data] == ["Full fine-tune", "LoRA-XS"]


def test_one_s_own_card_is_drawn_wherever_the_axis_reaches_it():
    frame = pd.DataFrame({"method": ["LoRA"], "part": ["weights"], "gib": [60.0]})
    cards = {"small": 12.0, "mine": 23.4, "large": 79.0}
    chart = charts.memory_bars(frame, cards, mine="mine")
    assert {line.x0: line.line.dash for line in chart.layout.shapes} == {23.4: "solid", 79.0: "dash"}
    assert "My GPU: mine (23.4 GiB)" in [note.text for note in chart.layout.annotations]
    assert not [note.text for note in charts.memory_bars(frame, cards).layout.annotations if "mine" in note.text]
