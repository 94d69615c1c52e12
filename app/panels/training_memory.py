"""The memory half of the Cost page: the peak of a training step by part, against real cards."""

from __future__ import annotations

import shlex
from functools import partial

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analyzers.memory import GPUS, MemoryEstimate, MemorySettings, estimate_memory, what_decides
from analyzers.memory.gpus import Gpu
from analyzers.methods import METHODS
from analyzers.units import GIB
from app import answers, charts, components, forms, frames, on_show, state
from app.options.training_step import words
from app.panels import memory_inputs, my_gpu, remedies, what_fits
from app.reproduce import adapters
from app.text import markdown
from app.units import gib_text, memory_text, memory_unit
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WorkbenchError

IN_A_ROW = 4
EXPLAINED = ("lora-xs", "lora")  # the methods whose sentences compare them with each other, the first chosen first


@st.fragment
def show(checkpoint: Checkpoint, ranks: dict[str, dict], targets: dict, answer: DeltaGenerator) -> None:
    """Settings to the left, the peak of each method to the right. A fragment: its inputs do not run the rest of the page again."""
    card = my_gpu.choose()
    controls, results = components.panes([1, 2.6], "memory")
    with controls, components.errors():
        settings = memory_inputs.settings(checkpoint)
    with results, components.errors():
        asked = memory_inputs.methods(ranks)
        estimates = _numbers(checkpoint, asked, targets, settings)
        on_show.training(checkpoint, asked, settings, card and card[1])
        if card is not None and estimates:
            components.answer(
                answer, answers.fits(card[1], {frames.memory_label(name, one): one for name, one in estimates.items()})
            )
        lowering = st.container()
        sentences = _results(estimates, card and card[1]) if estimates else st.container()
    _reproduce(asked, targets, settings)
    with components.errors():
        if card is not None:
            what_fits.show(checkpoint, asked, targets, settings, *card)
    if estimates:
        with lowering, components.errors():
            method = next((name for name in EXPLAINED if name in estimates), next(iter(estimates)))
            own = memory_inputs.question(checkpoint, method, asked[method], settings, targets)
            remedies.show(frames.memory_label(method, estimates[method]), own, estimates[method], card and card[1], _traced)
        with sentences, components.errors():  # last, since they ask for estimates of their own
            _decides(checkpoint, estimates, asked, targets, settings)
    forms.remember()  # a fragment runs without the end of the page


@st.cache_data(max_entries=500, show_spinner=False)
def _traced(key: tuple, _checkpoint: Checkpoint, _settings: MemorySettings) -> MemoryEstimate:
    return estimate_memory(_checkpoint, _settings)


def _numbers(checkpoint: Checkpoint, asked: dict[str, dict], targets: dict, settings: dict) -> dict[str, MemoryEstimate]:
    """Traces each method and shows its peak as soon as it is known; in one unit when all are. What is refused is said once, and the
    others stay."""
    if not asked:
        st.info("Choose at least one method.", icon=":material/lightbulb:")
    found, places, refused = {}, {}, []
    cards = st.empty()
    row = cards.container().grid(min(IN_A_ROW, len(asked)) or 1, min_column_width=190)
    for method in asked:
        with row.container(border=True):
            try:
                with st.spinner(f"Tracing {METHODS[method].label}…"):
                    found[method] = _traced(*memory_inputs.question(checkpoint, method, asked[method], settings, targets))
                places[method] = st.empty()
                _number(places[method], method, found[method], _most(found))
            except WorkbenchError as error:
                st.markdown(f"{METHODS[method].label}: **no figure**")
                refused.append(str(error))
    if not found:
        cards.empty()
    for method, estimate in found.items():
        if memory_unit(_most(found)) != memory_unit(estimate.interval[1]):
            _number(places[method], method, estimate, _most(found))
    for sentence in dict.fromkeys(refused):
        st.error(markdown(sentence), icon=":material/error:")
    return found


def _most(estimates: dict[str, MemoryEstimate]) -> int:
    """The largest figure on show, bytes: all others are told in its unit."""
    return max(estimate.interval[1] for estimate in estimates.values())


def _number(place: DeltaGenerator, method: str, estimate: MemoryEstimate, most: int) -> None:
    def text(value: float) -> str:
        return memory_text(value, most)

    low, high = map(text, estimate.interval)
    place.metric(
        f"{frames.memory_label(method, estimate)}: peak reserved",
        text(estimate.peak_reserved),
        delta=f"{low} to {high}",
        delta_color="off",
        delta_arrow="off",
        help=f"What the allocator holds at the peak, and its interval; {text(estimate.peak_allocated)} of it in use. "
        f"With the CUDA context, nvidia-smi shows {gib_text(estimate.on_card[0])} to {gib_text(estimate.on_card[1])}.",
    )


def _results(estimates: dict[str, MemoryEstimate], card: Gpu | None) -> object:
    """Bars, cards (one's own among them) and table; returns the place for the sentences between them."""
    labelled = {frames.memory_label(method, estimate): estimate for method, estimate in estimates.items()}
    frame = frames.memory(labelled)
    components.chart(
        partial(
            charts.memory_bars,
            frame,
            {gpu.name: gpu.bytes / GIB for gpu in [*GPUS, *([card] if card else [])]},
            intervals=frames.memory_intervals(labelled),
            mine=card.name if card else None,
        ),
        "memory",
        label="GPU memory of a training step by part, a bar a method, with the capacity of cards",
    )
    sentences = st.container()
    _fits(labelled)
    wide = frame.pivot_table(index="part", columns="method", values="gib", sort=False).reset_index()
    wide["part"] = wide["part"].map(charts.part_label)
    unit, size = memory_unit(_most(estimates))
    wide[wide.columns[1:]] *= GIB / size
    wide.columns = ["part", *(f"{label} ({unit})" for label in wide.columns[1:])]
    components.table(
        wide,
        "memory.csv",
        key="memory-table",
        columns=dict.fromkeys(wide.columns[1:], st.column_config.NumberColumn(format="%.3f" if size == GIB else "%.1f")),
    )
    return sentences


@st.cache_data(max_entries=500, show_spinner="Asking what decides…")
def _sentences(
    questions: list, _checkpoint: Checkpoint, _own: MemorySettings, _rival: MemorySettings | None, _estimate: MemoryEstimate
) -> list[str]:
    return what_decides(_checkpoint, _own, _estimate, rival=_rival)


def _decides(checkpoint: Checkpoint, estimates: dict, asked: dict[str, dict], targets: dict, settings: dict) -> None:
    """What decides, with the first of `EXPLAINED`, and what the estimate rests on."""
    method = next((name for name in EXPLAINED if name in estimates), next(iter(estimates)))
    rival = next((name for name in EXPLAINED if name in estimates and name != method), None)
    own, other = (name and memory_inputs.question(checkpoint, name, asked[name], settings, targets) for name in (method, rival))
    estimate = estimates[method]
    keys = [own.key, other and other.key]
    said = _sentences(keys, checkpoint, own.settings, other and other.settings, estimate)
    sentences = [*said, *estimate.reasons]
    st.markdown(
        f"**{frames.memory_label(method, estimate)}**\n" + "\n".join(f"- {markdown(sentence)}" for sentence in sentences)
    )


def _fits(labelled: dict[str, MemoryEstimate]) -> None:
    """The smallest card of the catalogue that holds the upper end of each interval."""
    rows = []
    for label, estimate in labelled.items():
        sure = min((gpu for gpu in GPUS if gpu.bytes >= estimate.interval[1]), key=lambda gpu: gpu.bytes, default=None)
        rows.append(f"{label}: **{sure.name}**" if sure else f"{label}: **none of the catalogue**")
    st.markdown("Smallest GPU that holds the upper end of the interval. " + "; ".join(rows) + ".")


def _reproduce(asked: dict[str, dict], targets: dict, settings: dict) -> None:
    if not asked:
        return
    model, said = shlex.quote(state.model_name()), words(settings)
    command = "\n".join(
        f"loraxs memory {model} --method {method}{adapters.flags(with_what, targets if METHODS[method].config else {})} {said}"
        for method, with_what in asked.items()
    )
    explained = next((name for name in EXPLAINED if name in asked), next(iter(asked)))
    rival = next((name for name in EXPLAINED if name in asked and name != explained), None)
    against = f", rival=settings.but(method={rival!r}, **methods[{rival!r}])" if rival else ""
    python = (
        "from analyzers.memory import MemorySettings, estimate_memory, what_decides\n"
        + adapters.imports(asked)
        + f"\nmodel = open_model({state.model_name()!r})\nsettings = {memory_inputs.python(settings)}\n"
        + f"methods = {adapters.python(asked, targets)}\n"
        + "for method, asked in methods.items():\n"
        + "    estimate = estimate_memory(model, settings.but(method=method, **asked))\n"
        + "    print(method, estimate.peak_reserved, estimate.breakdown)\n"
        + f"print(what_decides(model, settings.but(method={explained!r}, **methods[{explained!r}]){against}))"
    )
    components.reproduce(command, python)
