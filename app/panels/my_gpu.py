"""The card that training is to fit, chosen once on top of the memory tab and remembered for the next time."""

from __future__ import annotations

import streamlit as st

from analyzers.memory import GPUS, find_gpu
from analyzers.memory.gpus import Gpu
from app import components
from app.remembered import remember, remembered

KEY = "fit-gpu"
USUAL = "RTX 3090 / 4090 24 GB"  # of a person who has not said


def choose() -> tuple[str, Gpu] | None:
    """The choice as it was typed, and the card it means; None, and the reason in a box, where it is no card."""
    names = [gpu.name for gpu in GPUS]
    kept = remembered("gpu", str)
    if kept and kept not in names:
        names.append(kept)
    wanted = st.selectbox(
        "My GPU",
        names,
        index=names.index(kept or USUAL),
        accept_new_options=True,
        key=KEY,
        persist_state="session",
        on_change=_remember,
        help="Or type its memory in GB, such as 24.",
    )
    with components.errors():
        return wanted, find_gpu(wanted)
    return None


def _remember() -> None:
    remember(gpu=st.session_state[KEY])
