"""The memory half of the Cost page: the peak of a training step by part, against real cards."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from analyzers.memory import GPUS, MemoryEstimate, MemorySettings, estimate_memory
from analyzers.memory.settings import DTYPES, OPTIMIZERS, TASKS
from analyzers.methods import METHODS
from app import charts, components, state
from app.units import gib_text, percent_text
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
            METHODS[method].label: _estimate(checkpoint, method, asked, settings, targets) for method, asked in ranks.items()
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
        _decides(estimates)
        _fits(estimates)
        wide = frame.pivot_table(index="part", columns="method", values="gib", sort=False).reset_index()
        wide.columns = ["part", *(f"{label} (GiB)" for label in wide.columns[1:])]
        components.table(
            wide,
            "memory.csv",
            key="memory-table",
            columns=dict.fromkeys(wide.columns[1:], st.column_config.NumberColumn(format="%.3f")),
        )
    components.reproduce(_command(checkpoint, ranks, settings), _python(checkpoint, ranks, settings))


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


def _estimate(checkpoint: Checkpoint, method: str, asked: dict, settings: dict, targets: dict) -> MemoryEstimate:
    plan = asked.get("plan")
    named = settings if plan else {**settings, "rank": asked["rank"], **targets}
    return _traced(
        checkpoint.fingerprint, method, state.identity(plan) if plan else "", tuple(sorted(named.items())), checkpoint, plan
    )


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


def _decides(estimates: dict[str, MemoryEstimate]) -> None:
    """What decides, in sentences."""
    own = estimates[METHODS["lora-xs"].label]
    largest = max(own.breakdown, key=own.breakdown.get)
    lines = [
        f"- With LoRA-XS the largest part is **{charts.part_label(largest)}**: {percent_text(own.breakdown[largest] / sum(own.breakdown.values()))} of the peak."
    ]
    for label, other in estimates.items():
        if other is not own:
            saved = other.peak_reserved - own.peak_reserved
            lines.append(f"- LoRA-XS reserves {gib_text(abs(saved))} {'less' if saved >= 0 else 'more'} than {label} here.")
    lines += [f"- {reason}" for reason in own.reasons]
    st.markdown("\n".join(lines))


def _fits(estimates: dict[str, MemoryEstimate]) -> None:
    """The smallest card of the catalogue that holds the upper end of each interval."""
    rows = []
    for label, estimate in estimates.items():
        sure = min((gpu for gpu in GPUS if gpu.bytes >= estimate.interval[1]), key=lambda gpu: gpu.bytes, default=None)
        rows.append(f"{label}: **{sure.name}**" if sure else f"{label}: **none of the catalogue**")
    st.markdown("Smallest GPU that holds the upper end of the interval. " + "; ".join(rows) + ".")


def _command(checkpoint: Checkpoint, ranks: dict[str, dict], settings: dict) -> str:
    words = [f"loraxs memory {checkpoint.name} --method lora-xs"]
    words.append(f"--plan {state.plan_file()}" if "plan" in ranks["lora-xs"] else f"--rank {ranks['lora-xs']['rank']}")
    words.append(
        f"--batch {settings['batch']} --sequence {settings['sequence']} --base-dtype {settings['base_dtype']} --adapter-dtype {settings['adapter_dtype']}"
    )
    words.append(f"--optimizer {settings['optimizer']}")
    words += [f"--{flag} {settings[flag]}" for flag in ("quantize", "task") if settings[flag]]
    words += ["--checkpointing"] if settings["gradient_checkpointing"] else []
    return " ".join(words)


def _python(checkpoint: Checkpoint, ranks: dict[str, dict], settings: dict) -> str:
    by_plan = "plan" in ranks["lora-xs"]
    values = [
        "method='lora-xs'",
        f"plan=RankPlan.load({str(state.plan_file())!r})" if by_plan else f"rank={ranks['lora-xs']['rank']}",
    ]
    values += [f"{name}={value!r}" for name, value in settings.items()]
    return (
        "from analyzers.memory import MemorySettings, estimate_memory\n"
        + ("from analyzers.ranks import RankPlan\n" if by_plan else "")
        + "from sample_models import open_model\n\n"
        + "settings = MemorySettings(\n    " + ",\n    ".join(values) + ",\n)\n"
        + f"estimate = estimate_memory(open_model({checkpoint.name!r}), settings)\nprint(estimate.peak_reserved, estimate.breakdown)"
    )  # fmt: skip
