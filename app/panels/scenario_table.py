"""A scenario's figures as a table with its download."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from analyzers.storage import Scenario
from app import components


def show(scenario: Scenario, frame: pd.DataFrame, key: str) -> None:
    """One row a method. frame: of `Scenario.frame`; key: of the widgets, and the name of the file."""
    shown = pd.DataFrame(
        {
            "method": frame["label"],
            "rank": _sortable(frame["rank"]),
            "trained numbers": frame["trainable"],
            "head numbers": frame["head_parameters"],
            "file (B)": frame["file_bytes"],
            "header (B)": frame["header_bytes"],
            "fleet (GB)": frame["fleet_gb"],  # bytes of a large one are beyond the whole numbers a browser holds exactly
            "fleet ($ a month)": frame["cost_per_month"],
            "load one (s)": frame["load_seconds"],
            f"stay in {scenario.memory_gib:g} GiB": frame["resident"],
        }
    )
    whole = st.column_config.NumberColumn(format="localized")
    columns = dict.fromkeys((*shown.columns[2:7], shown.columns[-1]), whole)
    columns["fleet ($ a month)"] = st.column_config.NumberColumn(format="dollar")
    columns["load one (s)"] = st.column_config.NumberColumn(format="%.3g")
    components.table(shown, f"{key}.csv", key=f"{key}-table", columns=columns)


def _sortable(ranks: pd.Series) -> pd.Series:
    """Numbers, which sort as such, where every rank is one; with a plan among them, whose rank is a range, the words they are."""
    numbers = pd.to_numeric(ranks, errors="coerce")
    return numbers.astype("Int64") if ranks[numbers.isna()].eq("\u2014").all() else ranks
