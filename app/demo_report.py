"""What the demo's report.html says: the figures of the page, in the order of the work."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyzers.methods import METHODS
from app import charts, figure_tables, frames
from app.demo_result import LIKE_RANK, DemoResult
from app.report import Figure, Section, Table, write_report
from app.results_table import RESULT_COLUMNS, summary_rows
from app.units import bytes_text, count_text, gib_text
from loraxs_core.progress import seconds


def write(result: DemoResult) -> None:
    """Writes ``report.html`` into the demo's folder."""
    task = result.run.settings.check()
    write_report(
        result.report,
        title=f"{result.checkpoint.name}: spectra, ranks, cost and a race",
        summary=f"LoRA, VeRA and LoRA-XS on {task.label}, with a frozen base and a trained head as the control. {task.summary}",
        facts=_facts(result),
        sections=[_race(result), _spectra(result), _plan(result), _cost(result)],
        footer=f"Made by loraxs demo in {seconds(result.seconds)}{' (some trials were there already)' if result.resumed else ''} on {_machine(result)}. One seed and a short training: the order of close "
        "methods can change with the seed; loraxs compare takes several and gives intervals.",
    )


def _facts(result: DemoResult) -> list[tuple[str, str]]:
    best = result.summary.dropna(subset=["score"]).sort_values("score").iloc[-1]
    own = result.summary[result.summary["method"] == "lora-xs"].iloc[0]
    lora = result.sizes["lora"].file_bytes / result.sizes["lora-xs"].file_bytes
    return [
        ("Numbers in the model's matrices", count_text(result.checkpoint.parameters)),
        ("Trained by LoRA-XS", count_text(own["parameters"])),
        ("Best score", f"{best['score']:.3f}, {best['label']}"),
        ("LoRA-XS file", f"{bytes_text(result.sizes['lora-xs'].file_bytes)}, {lora:.0f} times smaller than LoRA's"),
    ]


def _race(result: DemoResult) -> Section:
    task = result.run.settings.check()
    summary = result.summary.dropna(subset=["score"])
    curves = result.run.metrics()
    settings = result.run.settings
    return Section(
        "The race",
        f"{settings.steps} steps of {settings.batch} examples each: the same batches, the same start of the head and the same evaluation "
        "for every method, each with its own learning rate.",
        [
            Table(
                RESULT_COLUMNS,
                summary_rows(result.summary),
                f"Score: {task.metric_label} on the test split, which took no part in training or in choosing anything. Adapter: tensors of "
                f"the saved file without the head. Peak memory: {result.run.results()['peak_memory_kind'].dropna().iloc[0]}.",
            ),
            Figure(
                lambda dark: charts.accuracy_against_parameters(summary, metric=task.metric_label, dark=dark),
                "Up and to the left is better.",
                Table(
                    ("method", "trained numbers", f"test {task.metric_label}"),
                    [(row.label, f"{row.parameters:,.0f}", f"{row.score:.4f}") for row in summary.itertuples()],
                ),
            ),
            Figure(
                lambda dark: charts.training_curves(curves, smoothing=0.7, dark=dark),
                "Training loss (thin, smoothed) and validation loss (thick).",
                _losses(curves),
            ),
        ],
    )


def _spectra(result: DemoResult) -> Section:
    frame = result.spectra.frame(result.plan)
    chosen = _examples(result)
    layers = {label: result.spectra.layers[name] for label, name in chosen.items()}
    values = {label: layer.singular_values for label, layer in layers.items()}
    shares = {label: layer.cumulative_energy for label, layer in layers.items()}
    ranks = {label: result.plan.ranks[name] for label, name in chosen.items()}
    return Section(
        "Spectra",
        "All singular values of every linear weight, exactly.",
        [
            Figure(
                lambda dark: charts.layer_map(frame, "effective_rank", dark=dark),
                "One square a weight: how many directions carry it.",
                figure_tables.by_layer(frame, "effective_rank", charts.metric_label("effective_rank")),
            ),
            Figure(
                lambda dark: charts.spectrum(values, ranks, dark=dark),
                "One layer of the middle; the dotted lines are the planned ranks.",
                _at(values, ranks, "singular value"),
            ),
            Figure(
                lambda dark: charts.cumulative_energy(shares, ranks, dark=dark),
                "The share of its energy that a rank keeps of each.",
                _at(shares, ranks, "share of the energy"),
            ),
        ],
    )


def _losses(curves: pd.DataFrame) -> Table:
    """Where the validation curves end. curves: of `RunFolder.metrics`."""
    last = curves[curves["kind"] == "eval"].groupby("label", sort=False).tail(1)
    rows = [(row.label, f"{row.step:.0f}", f"{row.value:.4f}") for row in last.itertuples()]
    return Table(("method", "step", "validation loss there"), rows)


def _at(curves: dict[str, np.ndarray], ranks: dict[str, int], what: str) -> Table:
    """The curves of a few layers at some directions, the planned ranks among them. curves: label -> a value a direction."""
    places = sorted({1, 2, 4, 8, 16, 32, 64, 128, 256, *ranks.values()})
    rows = [
        (f"{place}", *(f"{curve[place - 1]:.4g}" if place <= len(curve) else "" for curve in curves.values()))
        for place in places
    ]
    planned = ", ".join(f"{label} {rank}" for label, rank in ranks.items())
    return Table((f"{what} at direction", *curves), rows, f"Planned ranks: {planned}.")


def _examples(result: DemoResult) -> dict[str, str]:
    """The planned layers of the middle of the stack: role as shown -> name."""
    frame = result.plan.frame(result.checkpoint).dropna(subset=["layer"])
    middle = sorted(frame["layer"].unique())[frame["layer"].nunique() // 2]
    part = frame[frame["layer"] == middle]
    return {charts.role_label(row.role): row.name for row in part.itertuples(index=False)}


def _plan(result: DemoResult) -> Section:
    plan = result.plan
    frame = plan.frame(result.checkpoint, result.spectra)
    return Section(
        "Plan",
        f"Strategy {plan.strategy}: {plan.trainable:,} trained numbers of a budget of {plan.budget:,}, as many as rank {LIKE_RANK} everywhere. "
        f"{plan.evidence}",
        [
            Figure(
                lambda dark: charts.rank_bars(frame, uniform=LIKE_RANK, dark=dark),
                "The line is the uniform plan of the same budget.",
                figure_tables.by_layer(frame, "rank", "rank r (directions)"),
            )
        ],
    )


def _cost(result: DemoResult) -> Section:
    disk = pd.DataFrame(
        [
            {"method": name, "label": METHODS[name].label, "bytes": size.file_bytes, "text": bytes_text(size.file_bytes)}
            for name, size in result.sizes.items()
        ]
    )
    labelled = {METHODS[name].label: estimate for name, estimate in result.memory.items()}
    parts, intervals = frames.memory(labelled), frames.memory_intervals(labelled)
    peaks = ", ".join(f"{label} {gib_text(estimate.peak_reserved)}" for label, estimate in labelled.items())
    return Section(
        "Cost",
        f"Adapter files to the byte, and the memory that the same training would take on a GPU: {peaks}.",
        [
            Figure(
                lambda dark: charts.storage_bars(disk, dark=dark),
                "adapter_model.safetensors of the adapter alone, header included (log axis).",
                Table(("method", "file (bytes)"), [(row["label"], f"{row['bytes']:,}") for row in disk.to_dict("records")]),
            ),
            Figure(
                lambda dark: charts.memory_bars(parts, intervals=intervals, dark=dark),
                "Peak of one training step by part, with the estimate's interval.",
                figure_tables.memory_parts(parts, {}),
            ),
        ],
    )


def _machine(result: DemoResult) -> str:
    done = result.run.results().dropna(subset=["device"]).iloc[0]
    return f"{int(done['threads'])} CPU threads" if done["device"] == "cpu" else str(done["device"])
