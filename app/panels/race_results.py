"""What came out of a comparison: the verdict, the table, accuracy against size."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analyzers.compare import RunFolder, State, TrainedAdapter, reported_adapters
from analyzers.compare.behind import behind_the_best
from analyzers.compare.overlays import scored, summaries_of
from analyzers.compare.summary import adapter_size
from analyzers.compare.tasks import METRIC_LABELS
from app import answers, components, state
from app.forms import bound
from app.panels import any_two, run_filters
from app.panels.trained_adapters import open_clicked
from app.text import markdown

ENDED = {State.CANCELLED: "was cancelled", State.FAILED: "failed", State.CRASHED: "stopped without a word"}
OVER = {"seeds": "over seeds", "examples": "over test examples, one seed"}


def answer(run: RunFolder, place: DeltaGenerator) -> None:
    """The verdict in one line; it says of which model where that is not the one of the page."""
    done = scored(run.summary())
    running = run.status().is_running
    if len(done):
        line = answers.race(done, METRIC_LABELS[done["metric"].iloc[0]], behind_the_best(run, done))
        line = f"So far: {'c' + line[1:] if line.startswith('Cannot tell') else line}" if running else line
    elif running:
        line = "Racing: no method has a score yet"
    else:
        line = f"No method has a score: the comparison {ENDED.get(run.status().state, 'has none to show')}"
    scores = set(done["label"]) if len(done) else set()
    for label in dict.fromkeys(failure["label"] for failure in run.failures()):
        line += f"; {'a trial of ' * (label in scores)}{markdown(label)} failed"
    settings = run.settings
    other = settings.model != state.model_name()
    about = f"{markdown(settings.model)} on {markdown(run_filters.task_label(settings.task))}: " if other else ""
    components.answer(place, about + line)


def show(run: RunFolder, beside: Sequence[RunFolder] = ()) -> None:
    """Table, sentence and picture. beside: other runs, whose scores are drawn as well."""
    done = scored(run.summary())
    if done.empty:
        return
    metric = METRIC_LABELS[done["metric"].iloc[0]]
    st.subheader("Results", anchor=False)
    _table(run, done, metric)
    st.markdown(answers.best_here(done, metric, behind_the_best(run, done)))
    st.subheader("Any two figures", anchor=False)
    any_two.show(run, summaries_of(run, beside), metric)


def _table(run: RunFolder, done: pd.DataFrame, metric: str) -> None:
    kinds = run.results()["peak_memory_kind"].dropna().unique() if "peak_memory_kind" in run.results() else []
    whose = "GPU (MB)" if any("GPU" in kind or "CUDA" in kind for kind in kinds) else "process (MB)"
    shown = pd.DataFrame(
        {
            "method": done["label"],
            f"test {metric}": done["score"],
            "95 % interval": [f"{low:.3f} to {high:.3f}" if over else "one seed, no predictions kept" for low, high, over in zip(done["low"], done["high"], done["interval"], strict=True)],
            "trained": done["parameters"],
            "head": done["head_parameters"],
            "adapter (B)": [adapter_size(row) for row in done.to_dict("records")],
            "with head (B)": done["file_bytes"],
            "rate": done["learning_rate"],
            "training (s)": done["train_seconds"],
            "SVD (s)": done["svd_seconds"],
            whose: done["peak_memory_bytes"] / 1e6,
        }
    )  # fmt: skip
    number = st.column_config.NumberColumn
    columns: dict[str, object] = {
        "method": st.column_config.TextColumn(width=104),
        f"test {metric}": number(format="%.4f"),
        "95 % interval": st.column_config.TextColumn(help=", ".join(OVER[over] for over in done["interval"].dropna().unique())),
        "trained": number(format="localized", help="Numbers of the adapter, without the head."),
        "head": number(format="localized", help="Numbers of the trained head."),
        "adapter (B)": number(
            format="localized", help="adapter_model.safetensors as written, as on the Cost and Adapters pages."
        ),
        "with head (B)": number(
            format="localized", help="All files as written, with the head that is saved beside the adapter."
        ),
        "rate": number(format="%g"),
        "training (s)": number(format="%.1f"),
        "SVD (s)": number(format="%.2f", help="Building the adapter from the singular value decomposition, before training."),
        whose: number(format="%.0f", help=f"Peak memory: {', '.join(map(markdown, kinds))}."),
    }
    adapters = _adapters(run, done)
    columns["open"] = st.column_config.ButtonColumn(
        "adapter", width=66, on_click=open_clicked, args=(adapters, "open-adapter"), key="open-adapter"
    )
    buttons = shown.copy()
    if len(shown) > 1 and st.toggle(
        "Differences only", value=True, **bound("differences-only"), help="Hides the columns in which all methods are alike."
    ):
        alike = [name for name in shown.columns[3:] if len(shown[name].drop_duplicates()) == 1]
        buttons = buttons.drop(columns=alike)
        if alike:
            st.caption("The same for all: " + ", ".join(f"{name} {_value(shown[name].iloc[0])}" for name in alike) + ".")
    buttons.insert(0, "open", ["Open" if adapter else "" for adapter in adapters])
    components.table(buttons, f"{run.name}-summary.csv", key="summary", columns=columns, download=shown)


def _value(value: object) -> str:
    return "unknown" if value != value or value is None else f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"


def _adapters(run: RunFolder, done: pd.DataFrame) -> list[TrainedAdapter | None]:
    """For each row its adapter, where it has one."""
    found = reported_adapters(run)
    return [found.get(label) for label in done["label"]]
