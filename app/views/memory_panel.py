"""The memory half of the Cost page: the peak of a training step by part, against real cards."""

from __future__ import annotations

import shlex

import pandas as pd
import streamlit as st

from analyzers.memory import GPUS, MemoryEstimate, MemorySettings, estimate_memory, what_decides
from analyzers.memory.settings import DTYPES, OPTIMIZERS, TASKS
from analyzers.methods import METHODS
from app import charts, components, state
from app.units import gib_text
from app.views import adapter_words, fit_panel
from loraxs_core.checkpoint import Checkpoint

GIB = 2**30
QUANTIZED = {None: "no", "8bit": "8 bit (LLM.int8)", "4bit": "4 bit (NF4)"}


def show(checkpoint: Checkpoint, ranks: dict[str, dict], targets: dict) -> None:
    """Settings to the left, the peak of each method to the right."""
    controls, results = st.columns([1, 2.6], gap="large")
    with controls:
        settings = _settings(checkpoint)
    with results, components.errors():
        estimates = {
            METHODS[method].label: _traced(*_question(checkpoint, method, asked, settings, targets))
            for method, asked in ranks.items()
        }
        _numbers(estimates)
        frame = _frame(estimates)
        components.chart(
            charts.memory_bars(
                frame,
                {gpu.name: gpu.bytes / GIB for gpu in GPUS},
                intervals={
                    label: (estimate.interval[0] / GIB, estimate.interval[1] / GIB) for label, estimate in estimates.items()
                },
                dark=state.dark(),
            ),
            "memory",
        )
        _decides(checkpoint, estimates[METHODS["lora-xs"].label], ranks["lora-xs"], settings, targets)
        _fits(estimates)
        wide = frame.pivot_table(index="part", columns="method", values="gib", sort=False).reset_index()
        wide.columns = ["part", *(f"{label} (GiB)" for label in wide.columns[1:])]
        components.table(
            wide,
            "memory.csv",
            key="memory-table",
            columns=dict.fromkeys(wide.columns[1:], st.column_config.NumberColumn(format="%.3f")),
        )
    words = _words(settings)
    task = f" --task {settings['task']}" if settings["task"] else ""
    components.reproduce(
        f"loraxs memory {shlex.quote(state.model_name())} --method lora-xs{adapter_words.flags(ranks['lora-xs'], targets)} {words}{task}",
        _python(ranks, targets, settings),
    )
    with components.errors():
        fit_panel.show(checkpoint, ranks, targets, settings, words)


def _settings(checkpoint: Checkpoint) -> dict:
    positions = checkpoint.config.get("max_position_embeddings")
    usual = min(128, positions) if isinstance(positions, int) else 128
    batch, sequence = st.columns(2)
    return {
        "batch": int(batch.number_input("Sequences a step", 1, 4096, 8, key="batch", persist_state="session")),
        "sequence": int(sequence.number_input("Tokens each", 1, 1_048_576, usual, step=128, key="sequence", persist_state="session")),
        "base_dtype": st.selectbox("Frozen weights in", ["bf16", "fp16", "fp32"], format_func=DTYPES.get, key="base-dtype", persist_state="session"),
        "adapter_dtype": st.selectbox("Adapter in", list(DTYPES), format_func=DTYPES.get, key="adapter-dtype", persist_state="session"),
        "quantize": st.selectbox("Quantised base", list(QUANTIZED), format_func=QUANTIZED.get, key="quantize", persist_state="session"),
        "optimizer": st.selectbox("Optimizer", list(OPTIMIZERS), format_func=OPTIMIZERS.get, key="optimizer", persist_state="session"),
        "task": st.selectbox("Model class", [None, *TASKS], format_func=lambda name: name or "the usual one for this model", key="memory-task", persist_state="session"),
        "gradient_checkpointing": st.toggle(
            "Gradient checkpointing", key="checkpointing", persist_state="session", help="Activations of a layer are computed again in the backward pass: less memory, about 30 % more time."
        ),
    }  # fmt: skip


@st.cache_data(max_entries=500, show_spinner="Tracing the training step…")
def _traced(
    fingerprint: str, method: str, plan_id: str, asked: tuple, _checkpoint: Checkpoint, _plan: object
) -> MemoryEstimate:
    return estimate_memory(_checkpoint, MemorySettings(method=method, plan=_plan, **dict(asked)))


def _question(checkpoint: Checkpoint, method: str, asked: dict, settings: dict, targets: dict) -> tuple:
    """The arguments of `_traced`: what the cache goes by, then what it does not look at."""
    plan = asked.get("plan")
    named = settings if plan else {**settings, "rank": asked["rank"], **targets}
    return (
        checkpoint.fingerprint, method, state.identity(plan) if plan else "", tuple(sorted(named.items())), checkpoint, plan
    )  # fmt: skip


def _numbers(estimates: dict[str, MemoryEstimate]) -> None:
    for column, (label, estimate) in zip(st.columns(len(estimates)), estimates.items(), strict=True):
        low, high = estimate.interval
        column.metric(
            f"{label}: peak reserved",
            gib_text(estimate.peak_reserved),
            delta=f"{gib_text(low)} to {gib_text(high)}",
            delta_color="off",
            delta_arrow="off",
            border=True,
            help=f"What the allocator holds at the peak, and its interval; {gib_text(estimate.peak_allocated)} of it in use.",
        )


def _frame(estimates: dict[str, MemoryEstimate]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"method": label, "part": part, "gib": held / GIB}
            for label, estimate in estimates.items()
            for part, held in estimate.breakdown.items()
        ]
    )


@st.cache_data(max_entries=500, show_spinner="Asking what decides…")
def _sentences(
    fingerprint: str, method: str, plan_id: str, asked: tuple, _checkpoint: Checkpoint, _plan: object, _estimate: MemoryEstimate
) -> list[str]:
    return what_decides(_checkpoint, MemorySettings(method=method, plan=_plan, **dict(asked)), _estimate)


def _decides(checkpoint: Checkpoint, estimate: MemoryEstimate, asked: dict, settings: dict, targets: dict) -> None:
    """What decides with LoRA-XS, and what the estimate rests on."""
    sentences = _sentences(*_question(checkpoint, "lora-xs", asked, settings, targets), estimate)
    st.markdown("\n".join(f"- {sentence}" for sentence in (*sentences, *estimate.reasons)))


def _fits(estimates: dict[str, MemoryEstimate]) -> None:
    """The smallest card of the catalogue that holds the upper end of each interval."""
    rows = []
    for label, estimate in estimates.items():
        sure = min((gpu for gpu in GPUS if gpu.bytes >= estimate.interval[1]), key=lambda gpu: gpu.bytes, default=None)
        rows.append(f"{label}: **{sure.name}**" if sure else f"{label}: **none of the catalogue**")
    st.markdown("Smallest GPU that holds the upper end of the interval. " + "; ".join(rows) + ".")


def _words(settings: dict) -> str:
    """The settings of the step, as options that `loraxs memory` and `loraxs fit` share."""
    words = [
        f"--{name.replace('_', '-')} {settings[name]}"
        for name in ("batch", "sequence", "base_dtype", "adapter_dtype", "optimizer")
    ]
    words += [f"--quantize {settings['quantize']}"] if settings["quantize"] else []
    words += ["--checkpointing"] if settings["gradient_checkpointing"] else []
    return " ".join(words)


def _python(ranks: dict[str, dict], targets: dict, settings: dict) -> str:
    values = "".join(f"    {name}={value!r},\n" for name, value in settings.items())
    return (
        "from analyzers.memory import MemorySettings, estimate_memory, what_decides\n"
        + adapter_words.imports(ranks)
        + f"\nmodel = open_model({state.model_name()!r})\nsettings = MemorySettings(\n{values})\n"
        + f"methods = {adapter_words.python(ranks, targets)}\n"
        + "for method, asked in methods.items():\n"
        + "    estimate = estimate_memory(model, settings.but(method=method, **asked))\n"
        + "    print(method, estimate.peak_reserved, estimate.breakdown)\n"
        + "print(what_decides(model, settings.but(method='lora-xs', **methods['lora-xs'])))"
    )
