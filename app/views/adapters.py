"""Adapters: open one, check it against its base, convert a LoRA or a fine-tune into LoRA-XS, export and merge."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analyzers.methods import METHODS
from app import answers, components, state
from app.commands.verify import MEANING
from app.forms import bound
from app.panels import adapter_outputs, kept_energy, trained_adapters
from app.text import markdown
from app.units import bytes_text, count_text, shape_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError
from loraxs_core.loading import ADAPTER_CONFIG, ADAPTER_FILE, AdapterFolder
from loraxs_core.safetensors_file import file_stamp
from sample_models import local_path


def show() -> None:
    """The page."""
    answer = components.heading(
        "Adapters", "What is in an adapter, whether it fits this base, and what LoRA-XS would keep of it."
    )
    base = state.checkpoint()
    if not base.has_weights:
        components.needs(
            f"{base.name} is an architecture without weights; adapters are checked against weights.",
            "model",
            "Choose another model",
        )
        return
    opened, sibling = st.tabs(["An adapter folder", "A fully fine-tuned sibling"])
    with opened, components.errors():
        if folder := trained_adapters.choose():
            _adapter(folder, base, answer)
        else:
            components.answer(answer, "No adapter is open")
    with sibling, components.errors():
        _sibling(base)


def _method(adapter: AdapterFolder) -> str:
    """What the method is called elsewhere on the page; PEFT's word for one that the workbench does not know."""
    labels = {name.replace("-", "").upper(): known.label for name, known in METHODS.items()}
    return labels.get(adapter.method, adapter.method)


def _adapter(folder: str, base: Checkpoint, answer: DeltaGenerator) -> None:
    place = local_path(folder)
    if place is None:
        raise AdapterError(f"There is no adapter folder {folder}; give the folder that has {ADAPTER_CONFIG} in it.")
    folder, adapter = str(place), AdapterFolder(place)
    config, entries = adapter.config, adapter.file.entries
    with components.cards(4):
        st.metric("Method", markdown(_method(adapter)), border=True)
        st.metric(
            "Rank (usual)",
            markdown(config.get("r", "—")),
            border=True,
            help=f"{len(config.get('rank_pattern') or {})} exceptions in rank_pattern",
        )
        st.metric("File", bytes_text(adapter.file.path.stat().st_size), border=True)
        st.metric(
            "Tensors",
            count_text(len(entries)),
            border=True,
            help=f"{len(adapter.heads)} of them belong to modules saved whole, such as the head",
        )
    with st.expander("Every tensor", icon=":material/table_rows:"):
        rows = [
            {"tensor": name, "shape": shape_text(entry.shape), "dtype": entry.torch_dtype, "bytes": entry.nbytes}
            for name, entry in entries.items()
        ]
        components.table(pd.DataFrame(rows), "tensors.csv", key="tensors")
    if adapter.method == "LORAXS":
        _verify(folder, base, answer)
        st.subheader("Take it elsewhere", anchor=False)
        adapter_outputs.export(folder, base)
        adapter_outputs.merged(folder, base)
    elif adapter.method == "LORA":
        components.answer(answer, _described(adapter))
        kept_energy.show(folder, folder, base, key="lora")
        adapter_outputs.merged(folder, base)
    else:
        components.answer(answer, _described(adapter))
        st.info(
            f"{markdown(_method(adapter))} adapters can be merged; conversion is for LoRA and for full fine-tunes.",
            icon=":material/info:",
        )
        adapter_outputs.merged(folder, base)


def _described(adapter: AdapterFolder) -> str:
    """What the page can say of an adapter whose bases are its own."""
    rank = f" of rank {markdown(adapter.config['r'])}" if "r" in adapter.config else ""
    return f"{markdown(_method(adapter))}{rank}, {bytes_text(adapter.file.path.stat().st_size)}: it brings all it needs, and can be merged"


@st.cache_data(max_entries=32, show_spinner="Rebuilding the bases of every module…")
def _checked(folder: str, changed: tuple[int, ...], fingerprint: str, _base: Checkpoint) -> list:
    from loraxs_core.tuner.folder import verify_adapter

    return verify_adapter(folder, _base)


def _verify(folder: str, base: Checkpoint, answer: DeltaGenerator) -> None:
    st.subheader("Module by module", anchor=False)
    checks = _checked(folder, file_stamp((Path(folder) / ADAPTER_FILE).stat()), base.fingerprint, base)
    wrong = next(((check.name, MEANING.get(check.status, check.status)) for check in checks if not check.ok), None)
    line = answers.adapter(sum(check.ok for check in checks), len(checks), base.name, wrong)
    components.answer(answer, line, icon=":green[:material/verified:]" if wrong is None else ":red[:material/error:]")
    rows = [
        {
            "module": check.name,
            "rank": check.rank,
            "verdict": MEANING.get(check.status, check.status),
            "relative error of ΔW": check.error,
            "usable": check.ok,
        }
        for check in checks
    ]
    components.table(
        pd.DataFrame(rows),
        "verification.csv",
        key="verification",
        height=300,
        columns={"relative error of ΔW": st.column_config.NumberColumn(format="%.1e")},
    )
    components.reproduce(
        f"loraxs verify {shlex.quote(folder)} --model {shlex.quote(base.name)}",
        "from loraxs_core.tuner.folder import verify_adapter\nfrom sample_models import open_model\n\n"
        f"for check in verify_adapter({folder!r}, open_model({base.name!r})):\n    print(check)",
    )


def _sibling(base: Checkpoint) -> None:
    names = state.other_models()
    source = st.selectbox(
        f"Fine-tune of {markdown(base.name)}: a catalogue name, folder or hub id on this machine", names, index=None, accept_new_options=True,
        placeholder="choose or type", **bound("sibling"),
    )  # fmt: skip
    if source:
        kept_energy.show(source, state.open_local(source), base, key="sibling")
