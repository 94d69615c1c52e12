"""SST-2 (Socher et al. 2013, a GLUE task): is a film review's phrase positive? Read from files the user has, or from the hub."""

from __future__ import annotations

import os
from pathlib import Path

from analyzers.compare.tasks import glue
from analyzers.compare.tasks.base import Example, Splits, Task
from analyzers.compare.tasks.metrics import CLASSIFICATION
from analyzers.compare.tasks.published import SHARED
from analyzers.compare.tasks.tables import hub_is_off
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.paths import user_path
from loraxs_core.progress import ProgressCallback

FILES = ("train.tsv", "dev.tsv", "test.tsv")
GLUE = glue.Glue("sst2", "SST-2", "", ("sentence",), ("negative", "positive"))


def read(data: str | None = None, progress: ProgressCallback | None = None) -> Splits:
    """SST-2 from a folder with train.tsv, dev.tsv and test.tsv (header ``sentence<TAB>label``; test is GLUE's validation split).

    Without such a folder, GLUE's own splits, from other files that are named or from the hub. Raises SettingsError saying where it looked when there is neither, RunError
    for a malformed file.
    """
    folder = _folder(data)
    if folder is None:
        try:
            return glue.read(GLUE, data, progress)
        except SettingsError as error:
            raise SettingsError(f"{_absent(data)} {error}") from None
    train, validation, test = (_split(folder / name) for name in FILES)
    return Splits(train, validation, test)


def missing() -> str | None:
    return _absent(None) if _folder(None) is None and hub_is_off() else None


def _folder(data: str | None) -> Path | None:
    if data:
        candidates = [user_path(data)]
    else:
        shared = os.environ.get(SHARED)
        roots = [user_path(shared)] if shared else []
        roots.append(Path(__file__).resolve().parents[4] / "shared" / "data")  # beside the repository
        candidates = [root / "glue" / "sst2" for root in roots]
    return next((folder for folder in candidates if all((folder / name).is_file() for name in FILES)), None)


def _absent(data: str | None) -> str:
    where = data or f"the folder that {SHARED} names (in glue/sst2)"
    return f"SST-2 is not on this machine: put {', '.join(FILES)} (columns sentence and label) into {where}, or choose stsb."


def _split(path: Path) -> tuple[Example, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    examples = []
    for number, line in enumerate(lines[1:], start=2):
        text, _, label = line.rpartition("\t")
        if label not in ("0", "1") or not text.strip():
            raise RunError(f"{path}, line {number}: expected a sentence, a tab and 0 or 1.")
        examples.append(Example(text.strip(), int(label)))
    if not examples:
        raise RunError(f"{path} holds no sentences.")
    return tuple(examples)


TASK = Task(
    name="sst2",
    label="SST-2",
    summary="Is a phrase of a film review positive? 60,614 phrases to train on, 6,735 to choose on, 872 to score on.",
    kind=CLASSIFICATION,
    metric="accuracy",
    classes=("negative", "positive"),
    read=read,
    missing=missing,
    group="GLUE",
)
