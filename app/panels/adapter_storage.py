"""The storage half of the Cost page: what one adapter of each method weighs, where they meet, what a fleet costs."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analyzers.storage import AdapterSize, Scenario, what_weighs
from app import answers, charts, components, on_show
from app.panels import fleet_inputs, run_on_disk, saved_scenarios, scenario_table, store_figures
from app.reproduce import scenarios
from app.units import bytes_text, count_text, money_text
from loraxs_core.checkpoint import Checkpoint

FLEET_SIZES = [10**power for power in range(10)]
CARDS_A_ROW = 4


def show(checkpoint: Checkpoint, ranks: dict[str, dict], answer: DeltaGenerator) -> None:
    """The whole tab. ranks: method -> the rank or the plan it is counted with; answer: the place of the page's answer."""
    keeping = saved_scenarios.show()
    scenario = fleet_inputs.show(checkpoint, ranks)
    saved_scenarios.keep(keeping, scenario)
    on_show.fleet(scenario)
    alone = scenario.alone()
    sizes = _sizes(checkpoint.fingerprint, alone.to_json(), alone, checkpoint)
    frame = scenario.frame(checkpoint, sizes)
    components.answer(answer, answers.fleet(scenario, frame))
    _cards(scenario, frame)
    st.markdown(what_weighs(sizes))
    meets = _meets(checkpoint.fingerprint, alone.to_json(), alone, checkpoint)
    if meets:
        st.markdown("\n".join(f"- {sentence}" for sentence in meets))
    _figures(scenario, sizes, frame)
    scenario_table.show(scenario, frame, "sizes")
    if "lora-xs" in sizes:
        store_figures.show(scenario, sizes["lora-xs"])
    run = run_on_disk.show(sizes)
    commands = f"{scenarios.fleet_command(scenario)}\n{scenarios.run_command(scenario, run)}"
    components.reproduce(commands, scenarios.python(scenario, run))


def _cards(scenario: Scenario, frame: pd.DataFrame) -> None:
    """What one weighs, what all of them weigh, and what that costs; a card a method."""
    with components.cards(CARDS_A_ROW, narrowest=270):
        for row in frame.to_dict("records"):
            with st.container(border=True):
                rank = f", rank {row['rank']}" if row["rank"] != "\u2014" else ""
                st.markdown(f"**{row['label']}**{rank}")
                with components.cards(2, narrowest=110):
                    st.metric(
                        "One file",
                        bytes_text(row["file_bytes"]),
                        help=f"{row['file_bytes']:,} bytes, header of {row['header_bytes']:,} included",
                    )
                    st.metric(
                        "The fleet",
                        bytes_text(row["fleet_bytes"]),
                        help=f"{count_text(scenario.adapters)} adapters, {scenario.replicas} x {scenario.versions} files of each",
                    )
                st.caption(f"{count_text(row['trainable'])} trained numbers; **{money_text(row['cost_per_month'])}** a month")


@st.cache_data(max_entries=200, show_spinner=False)
def _sizes(fingerprint: str, asked: str, _scenario: Scenario, _checkpoint: Checkpoint) -> dict[str, AdapterSize]:
    """One adapter of each method."""
    return _scenario.sizes(_checkpoint)


@st.cache_data(max_entries=200, show_spinner=False)
def _meets(fingerprint: str, asked: str, _scenario: Scenario, _checkpoint: Checkpoint) -> list[str]:
    """At which rank LoRA-XS costs what the others do, in words."""
    return [meeting.sentence for meeting in _scenario.meets(_checkpoint)]


def _figures(scenario: Scenario, sizes: dict[str, AdapterSize], frame: pd.DataFrame) -> None:
    left, right = components.panes([1, 1], "storage")
    with left:
        st.subheader("One adapter", anchor=False)
        bars = pd.DataFrame(
            {
                "method": frame["method"],
                "label": frame["label"],
                "bytes": frame["file_bytes"],
                "text": [bytes_text(size) for size in frame["file_bytes"]],
            }
        )
        components.chart(
            partial(charts.storage_bars, bars, label="one file (B)"),
            "sizes",
            label="Bytes of one adapter file, by method",
        )
    with right:
        st.subheader("A fleet", anchor=False)
        curves = partial(
            charts.fleet_curves,
            scenario.curve(sizes, FLEET_SIZES),
            label="stored, copies and versions included (B)",
            marker=float(scenario.adapters),
        )
        components.chart(curves, "fleet", label="Bytes stored against the number of adapters")
