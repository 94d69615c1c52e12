"""What fits a GPU, on the Cost page: the largest batch and the longest sequence with each method."""

from __future__ import annotations

import shlex

import pandas as pd
import streamlit as st

from analyzers.memory import Fit, MemorySettings, find_gpu, fit
from analyzers.memory.fitting import SEQUENCE_STEP
from analyzers.memory.gpus import Gpu
from analyzers.methods import METHODS
from analyzers.units import GIB
from app import components, state
from app.options.training_step import words
from app.panels import memory_inputs
from app.reproduce import adapters
from app.text import markdown
from app.units import gib_text
from loraxs_core.checkpoint import Checkpoint


def show(checkpoint: Checkpoint, ranks: dict[str, dict], targets: dict, settings: dict, wanted: str, gpu: Gpu) -> None:
    """ranks: method -> what it is counted with. settings: of the training step (`MemorySettings` without method, rank and plan)."""
    choice, start = st.columns([3, 1], vertical_alignment="bottom")
    choice.subheader(f"What fits {markdown(gpu.name)}", anchor=False)
    methods = {name: asked for name, asked in ({"full": {}} | ranks).items() if not (name == "full" and settings["quantize"])}
    question = repr((checkpoint.fingerprint, wanted, adapters.python(methods, targets), settings))
    if start.button("Search", icon=":material/search:", key="fit", width="stretch"):
        st.session_state["fit-asked"] = question
    if st.session_state.get("fit-asked") != question:
        st.caption(
            f"Searches the largest batch of {settings['sequence']} tokens and the longest sequence at batch {settings['batch']} "
            f"that {gpu.name} holds ({gib_text(gpu.bytes)} usable), for each method: some seconds each."
        )
        return
    found = [_fit(checkpoint, method, asked, targets, settings, wanted) for method, asked in methods.items()]
    batch, sequence = (
        f"largest batch of {settings['sequence']} tokens",
        f"longest sequence at batch {settings['batch']} (tokens)",
    )
    frame = pd.DataFrame(
        [
            {
                "method": METHODS[one.method].label,
                batch: one.batch,
                "reserved at that batch (GiB)": one.at_batch and one.at_batch.peak_reserved / GIB,
                sequence: one.sequence,
                "reserved at that length (GiB)": one.at_sequence and one.at_sequence.peak_reserved / GIB,
                "length limited by": _limit(one),
            }
            for one in found
        ]
    )
    components.table(
        # Numbers underneath, so that they sort as such; the words are those of the command.
        frame.style.format(dict.fromkeys((batch, sequence), _or_none)),
        "fit.csv",
        key="fit-table",
        download=frame.assign(**{column: frame[column].map(_or_none) for column in (batch, sequence)}),
        columns=dict.fromkeys(
            ("reserved at that batch (GiB)", "reserved at that length (GiB)"), st.column_config.NumberColumn(format="%.2f")
        ),
    )
    st.caption(
        f"On {gpu.name}, {gib_text(gpu.bytes)} of it usable. Lengths go in steps of {SEQUENCE_STEP} tokens; the upper end of each estimate's interval fits."
    )
    components.reproduce(_command(methods, targets, settings, wanted), _python(methods, targets, settings, wanted))


@st.cache_data(max_entries=200, show_spinner="Searching what fits…")
def _searched(key: tuple, gpu: str, _checkpoint: Checkpoint, _settings: MemorySettings) -> Fit:
    return fit(_checkpoint, _settings, find_gpu(gpu))


def _fit(checkpoint: Checkpoint, method: str, asked: dict, targets: dict, settings: dict, gpu: str) -> Fit:
    one = memory_inputs.question(checkpoint, method, asked, settings, targets)
    return _searched(one.key, gpu, one.checkpoint, one.settings)


def _limit(one: Fit) -> str:
    if one.limited_by_model:
        return "the model's positions"
    return "GPU memory"


def _or_none(number: int) -> str:
    return str(number) if number else "none fits"


def _command(methods: dict[str, dict], targets: dict, settings: dict, gpu: str) -> str:
    """A line a method, since each has a rank of its own."""
    begin, end = f"loraxs fit {shlex.quote(state.model_name())} --gpu {shlex.quote(gpu)} --methods", words(settings)
    return "\n".join(
        f"{begin} {method}{adapters.flags(asked, targets if METHODS[method].config else {})} {end}"
        for method, asked in methods.items()
    )


def _python(methods: dict[str, dict], targets: dict, settings: dict, gpu: str) -> str:
    return (
        "from analyzers.memory import MemorySettings, find_gpu, fit\n"
        + adapters.imports(methods)
        + f"\nmodel = open_model({state.model_name()!r})\nsettings = {memory_inputs.python(settings)}\n"
        + f"methods = {adapters.python(methods, targets)}\n"
        + "for method, asked in methods.items():\n"
        + f"    found = fit(model, settings.but(method=method, **asked), find_gpu({gpu!r}))\n"
        + "    print(method, found.batch, found.sequence)"
    )
