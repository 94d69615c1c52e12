"""The fleet's LoRA-XS adapters in a store instead of files of their own, beside the arithmetic: what was measured of it."""

from __future__ import annotations

import streamlit as st

from analyzers.storage import AdapterSize, Scenario, in_store
from app.units import bytes_text, count_text, percent_text


def show(scenario: Scenario, size: AdapterSize) -> None:
    """size: of one LoRA-XS adapter."""
    found = in_store(scenario, size)
    st.caption(
        f"In a store (`loraxs store`) LoRA-XS's fleet takes **{bytes_text(found.bytes)}**: its numbers and "
        f"{percent_text(found.overhead, digits=2)} more. Measured with {count_text(found.measured)} adapters of "
        f"{bytes_text(found.row_bytes)} (`python -m benchmarks.fleet`): one is read and checked in {found.get_ms:.2g} ms, 99 of 100 "
        f"within {found.get_processor_ms_p99:.2g} ms of processor time."
    )
