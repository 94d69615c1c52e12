"""What trials leave, read as if anything could have happened to it: records of the finished, sentences of the failed, curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from analyzers.compare.summary import MEANS
from analyzers.compare.tasks import METRIC_LIMITS
from analyzers.compare.tasks.overlap import Overlap
from analyzers.compare.trial_settings import TrialSettings
from loraxs_core.documents import read_object
from loraxs_core.errors import RunError

RECORD_BYTES = 1024**2  # more is not read
OWN = ("trial", "method", "seed", "learning_rate")  # what tells trials apart; how a method is called may change
NEWER = ("adapter_file_bytes", "tokens_per_second", "energy_kept")  # what runs of earlier versions have no record of
SCORES = ("score", "validation_score")
COUNTS = ("adapter_parameters", "head_parameters")


def finished(folder: Path, trial: TrialSettings) -> dict | None:
    """The record of `trial` in its folder; None when it has not finished. Raises RunError for one that cannot be believed."""
    path = folder / "result.json"
    try:
        record = read_object(path, RECORD_BYTES)
    except FileNotFoundError:
        return None
    wrong = [name for name in OWN if record.get(name) != trial.about[name]]
    wrong += [name for name, value in trial.about.items() if type(record.get(name)) is not type(value)]
    wrong += [name for name in (*SCORES, *MEANS) if name not in {*record, *NEWER} or not _number(record.get(name))]
    wrong += [name for name in MEANS if _number(record.get(name)) and (record.get(name) or 0) < 0]
    wrong += [name for name in COUNTS if type(record.get(name)) is not int or record[name] < 0]
    wrong += [name for name, value in record.items() if not isinstance(value, str | bool | None) and not _number(value)]
    if record.get("state") != "done":
        wrong.append("state")
    if not isinstance(record.get("metric"), str) or record["metric"] not in METRIC_LIMITS:
        wrong.append("metric")
    elif not wrong:
        by = {"score": record["metric"], "validation_score": record.get("validation_metric", record["metric"])}
        wrong += [name for name in SCORES if not _possible(record[name], by[name])]
    if wrong:
        raise RunError(f"{path} is damaged: {wrong[0]} is {_shown(record.get(wrong[0]))}.")
    return record


def _possible(score: float | None, metric: object) -> bool:
    """Whether `metric` can have this value, but for rounding."""
    low, high = METRIC_LIMITS.get(str(metric), (math.inf, -math.inf))
    return score is None or low - 1e-6 <= score <= high + 1e-6


def on_data(record: Mapping[str, object]) -> list[str]:
    """What a record says of its data: how it was split, and how many test texts were there to be learnt."""
    said = [record.get("data_remark")]
    of, same, shared = (record.get(f"overlap_{name}") for name in ("of", "same", "shared"))
    if isinstance(of, int) and isinstance(same, int) and isinstance(shared, int):
        said.append(Overlap(of, same, shared).sentence)
    return [sentence for sentence in said if isinstance(sentence, str) and sentence]


def failed(folder: Path, trial: TrialSettings) -> dict | None:
    """The record of a failure: what `trial` is, and `error`, one sentence. None when it has not failed."""
    path = folder / "failure.json"
    try:
        error = read_object(path, RECORD_BYTES).get("error")
        if not isinstance(error, str):
            error = f"It failed; {path} does not say why any more."
    except FileNotFoundError:
        return None
    except RunError as damage:
        error = str(damage)
    return failure(trial, error)


def failure(trial: TrialSettings, error: str) -> dict:
    """What failure.json says of `trial`."""
    return {**trial.about, "plan": trial.plan_label or None, "rank": trial.rank, "state": "failed", "error": error}


def curves(lines: list[str]) -> list[dict]:
    """The points of every trial's last attempt in order; lines that are cut or no points are left out."""
    points: dict[str, list[dict]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("trial"), str):
            continue
        if entry.get("event") == "start":  # from the step of a checkpoint, or from the beginning
            before = entry.get("step", 0)
            kept = points.get(entry["trial"], []) if _number(before) and before else []
            points[entry["trial"]] = [point for point in kept if point["step"] <= before]
        elif _is_point(entry):
            points.setdefault(entry["trial"], []).append(entry)
    return [point for entries in points.values() for point in entries]


def _is_point(entry: dict) -> bool:
    texts = ("trial", "method", "label", "kind")
    return (
        all(isinstance(value, str) if name in texts else _number(value) for name, value in entry.items())
        and entry.get("step") is not None
    )


def _number(value: object) -> bool:
    """Whether `value` is a number that a table can hold, or None where there is none."""
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def _shown(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
