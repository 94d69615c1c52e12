"""The adapters that comparisons on this machine have trained, with what one knows them by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from analyzers.compare.runs.folder import RunFolder
from analyzers.compare.runs.listing import list_runs
from analyzers.compare.tasks import METRIC_LABELS, lower_is_better


@dataclass(frozen=True)
class TrainedAdapter:
    """One adapter of a finished trial.

    path: its folder. method: key of `METHODS`; label: as a table calls it, with its plan. metric: as it is called; score: on the test
    split, None where it is undefined. created: when its run was. chosen: whether its learning rate is the one that is reported.
    """

    path: Path
    run: str
    trial: str
    model: str
    task: str
    method: str
    label: str
    seed: int
    learning_rate: float
    metric: str
    score: float | None
    created: datetime
    chosen: bool


def adapters_of(run: RunFolder) -> list[TrainedAdapter]:
    """Those of one run whose folders are there, in the order of its trials."""
    summary, settings = run.summary(), run.settings
    rates = dict(zip(summary["label"], summary["learning_rate"], strict=True)) if "learning_rate" in summary else {}
    found = []
    for trial in run.trials():
        record, path = run.result(trial), run.trial_folder(trial.id) / "adapter"
        if record is None or not (path / "adapter_config.json").is_file():
            continue
        found.append(
            TrainedAdapter(
                path,
                run.name,
                trial.id,
                settings.model,
                settings.task,
                trial.method,
                trial.variant,
                trial.seed,
                trial.learning_rate,
                METRIC_LABELS[record["metric"]],
                record["score"],
                run.created,
                rates.get(trial.variant) == trial.learning_rate,
            )
        )
    return found


def reported_adapters(run: RunFolder) -> dict[str, TrainedAdapter]:
    """Label -> the adapter that stands for it: of its first seed, at the rate that is reported. The best variant first, by the scores of
    the table; test scores have no say in which rate or which seed of it."""
    first = {adapter.label: adapter for adapter in reversed(adapters_of(run)) if adapter.chosen and adapter.score is not None}
    summary = run.summary()
    if not first or "score" not in summary:
        return {}
    done = summary.dropna(subset=["score"])
    ranked = done.sort_values("score", ascending=lower_is_better(done["metric"].iloc[0]), kind="stable") if len(done) else done
    return {label: first[label] for label in ranked["label"] if label in first}


def trained_adapters() -> list[TrainedAdapter]:
    """All of this machine, the newest run first; runs that cannot be read are left out."""
    return [adapter for run in list_runs() for adapter in adapters_of(run)]
