"""Saved scenarios on the Cost page: the paper's example and the user's own, to look at, to use, to keep and to pass on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analyzers.storage import SCENARIOS, Scenario, find_scenario, forget_scenario, keep_scenario, own_names, scenario_names
from app import components, state
from app.forms import bound
from app.panels import fleet_inputs, scenario_table
from app.text import markdown
from app.units import bytes_text, count_text, money_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WorkbenchError

CARDS_A_ROW = 4
NONE = "none: the settings below"  # no name: those have no colon


def show() -> DeltaGenerator:
    """The choice, and below it the scenario that was chosen; returns where `keep` goes."""
    names = [NONE, *scenario_names()]
    if st.session_state.get("scenario") not in names:
        st.session_state["scenario"] = NONE  # the one chosen was deleted
    choice, keeping = st.columns([3, 1], vertical_alignment="bottom")
    chosen = choice.selectbox("Saved scenario", names, **bound("scenario", _label))
    if said := st.session_state.pop("scenario-said", None):
        st.error(markdown(said), icon=":material/error:")
    _ask()
    if chosen != NONE:
        with st.container(border=True), components.errors():
            _block(chosen)
    return keeping


def keep(place: DeltaGenerator, scenario: Scenario) -> None:
    """Saves the settings below under a name, or as a file, and takes files in. scenario: the settings below."""
    with place.popover("Save or open", icon=":material/bookmark:", width="stretch"):
        st.text_input("Save the settings below as", key="scenario-name", placeholder="my fleet")
        st.button("Save", key="scenario-save", icon=":material/save:", on_click=_keep, args=(scenario,))
        st.download_button(
            "Download them as a file",
            data=scenario.to_json(),
            file_name="scenario.json",
            mime="application/json",
            key="scenario-download",
            icon=":material/download:",
            on_click="ignore",
        )
        st.file_uploader("Open a scenario file", type="json", key="scenario-file", on_change=_take)


def _label(name: str) -> str:
    return SCENARIOS[name].title if name in SCENARIOS else name


def _block(name: str) -> None:
    """A scenario with its own model, apart from the page's settings."""
    scenario = find_scenario(name)
    many = [f"{count_text(scenario.adapters)} adapters"]
    many += [f"{scenario.replicas} copies of each"] if scenario.replicas > 1 else []
    many += [f"{scenario.versions} versions of each"] if scenario.versions > 1 else []
    st.markdown(
        f"**{markdown(_label(name))}**: {markdown(scenario.model)}, {', '.join(many)}, saved as {markdown(scenario.dtype)}"
    )
    with components.errors():  # a scenario whose model is not here can still be used, downloaded and deleted
        checkpoint = state.open_local(scenario.model)
        frame = _frame(checkpoint.fingerprint, scenario.to_json(), scenario, checkpoint)
        _figures(frame)
        if scenario.note:
            st.caption(markdown(scenario.note))
        scenario_table.show(scenario, frame, "scenario")
    _buttons(name, scenario)


def _figures(frame: pd.DataFrame) -> None:
    with components.cards(CARDS_A_ROW):
        for row in frame.to_dict("records"):
            rank = f", rank {row['rank']}" if row["rank"] != "\u2014" else ""
            with st.container():
                st.metric(
                    f"{row['label']}{rank}",
                    bytes_text(row["fleet_bytes"]),
                    help=f"As files. {row['fleet_number_bytes']:,} bytes are the numbers alone.",
                )
                money = money_text(row["cost_per_month"])
                st.caption(f"numbers alone {bytes_text(row['fleet_number_bytes'])}; {money} a month")


@st.cache_data(max_entries=50, show_spinner=False)
def _frame(fingerprint: str, asked: str, _scenario: Scenario, _checkpoint: Checkpoint) -> pd.DataFrame:
    return _scenario.frame(_checkpoint)


def _buttons(name: str, scenario: Scenario) -> None:
    with st.container(horizontal=True):
        st.button(
            "Use these settings below",
            key="scenario-use",
            icon=":material/south:",
            on_click=_use,
            args=(scenario, False),
            help="Methods, ranks, precision, counts, prices and serving. Model and layers stay those of this page.",
        )
        if scenario.model != state.model_name():
            st.button(
                f"Open {markdown(scenario.model)} with them",
                key="scenario-open",
                icon=":material/deployed_code:",
                on_click=_use,
                args=(scenario, True),
            )
        st.download_button(
            "Download",
            data=scenario.to_json(),
            file_name=f"{name}.json",
            mime="application/json",
            key="chosen-download",
            icon=":material/download:",
            on_click="ignore",
        )
        if name in own_names():
            st.button("Delete", key="scenario-delete", icon=":material/delete:", on_click=_forget, args=(name,))


def _use(scenario: Scenario, with_model: bool) -> None:
    try:
        if with_model:
            state.open_local(scenario.model)
            state.choose_model(scenario.model)
        fleet_inputs.use(scenario)
    except WorkbenchError as error:
        st.session_state["scenario-said"] = str(error)


def _keep(scenario: Scenario) -> None:
    _save(st.session_state["scenario-name"].strip(), scenario)


def _take() -> None:
    """Keeps the file that was opened under its own name, and shows it."""
    file = st.session_state["scenario-file"]
    if file is None:
        return
    try:
        taken = Scenario.from_json(file.getvalue(), file.name)
    except WorkbenchError as error:
        st.session_state["scenario-said"] = str(error)
        return
    if _save(Path(file.name).stem, taken):
        st.session_state["scenario"] = Path(file.name).stem


def _save(name: str, scenario: Scenario, *, force: bool = False) -> bool:
    """Whether it was kept; a name that one of the user's own has already is asked about on the page."""
    if not force and name.casefold() in map(str.casefold, own_names()):
        st.session_state["scenario-taken"] = (name, scenario)
        return False
    try:
        keep_scenario(name, scenario, force=force)
        st.toast(f"Saved as {markdown(name)}.", icon=":material/bookmark:")
    except WorkbenchError as error:
        st.session_state["scenario-said"] = str(error)
        return False
    return True


def _ask() -> None:
    """The question whether a saved scenario is to be replaced, while it waits for an answer."""
    if "scenario-taken" not in st.session_state:
        return
    name, scenario = st.session_state["scenario-taken"]
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(f"There is a scenario called {markdown(name)} already.", width="stretch")
        st.button("Replace it", key="scenario-replace", icon=":material/save:", on_click=_answer, args=(name, scenario))
        st.button("Keep it", key="scenario-leave", on_click=_answer, args=(name, None))


def _answer(name: str, scenario: Scenario | None) -> None:
    st.session_state.pop("scenario-taken", None)
    if scenario is not None:
        _save(name, scenario, force=True)


def _forget(name: str) -> None:
    try:
        forget_scenario(name)
        st.session_state["scenario"] = NONE
    except WorkbenchError as error:
        st.session_state["scenario-said"] = str(error)
