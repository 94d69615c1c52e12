"""What the numbers of a run rest on: the content of its data and model files, and the software. A table must not mix two of any.

Recorded in inputs.json when work on a run first begins, compared whenever it goes on.
"""

from __future__ import annotations

import contextlib
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from xxhash import xxh3_128

from analyzers.compare.tasks import Splits, Task
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.documents import read_object
from loraxs_core.errors import RunError
from loraxs_core.paths import atomic_file

CHUNK = 8 * 1024**2
PACKAGES = ("loraxs-workbench", "torch", "transformers", "peft", "numpy")
BESIDE_WEIGHTS = (".json", ".txt", ".model")  # configuration and tokenizer


def software() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def inputs(checkpoint: Checkpoint, task: Task, splits: Splits) -> dict:
    """The document of inputs.json: digests of every example and of every file that the model is loaded from, and `software`."""
    return {"data": _examples(task, splits), "model": _files(checkpoint), "software": software()}


def settle_inputs(folder: Path, found: dict) -> None:
    """Records `found` for a run that begins, compares it for one that goes on. Raises RunError saying what is not the same."""
    path = folder / "inputs.json"
    try:
        known = read_object(path)
    except FileNotFoundError:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return
    except RunError as error:
        raise RunError(
            f"{error} Whether data and model are those that the run began with cannot be told; start a new one."
        ) from None
    if change := _change(known, found):
        raise RunError(f"The run {folder.name} cannot go on: {change}. Start a new run, or bring back what it began with.")


def _change(known: dict, found: dict) -> str | None:
    if known.get("data") != found["data"]:
        return "its data has changed since it began, and one table must not mix scores on two"
    for what in ("model", "software"):
        before, now = known.get(what), found[what]
        if before == now:
            continue
        if not isinstance(before, dict):
            return f"inputs.json does not tell its {what}"
        name = min(name for name in {*before, *now} if before.get(name) != now.get(name))
        if what == "model":
            return f"{name} of its model has changed since it began"
        return f"it began with {name} {before.get(name, '(none)')}, and this is {now.get(name, 'gone')}"
    return None


def _examples(task: Task, splits: Splits) -> str:
    digest = xxh3_128(json.dumps([task.kind, task.metric, task.classes]).encode())
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test, **splits.more}
    for name, part in parts.items():
        digest.update(name.encode())
        for example in part:
            written = [example.answer, *example.messages] if example.answer is not None else []
            digest.update(json.dumps([example.text, example.label, example.pair, *written]).encode())
    return digest.hexdigest()


def _files(checkpoint: Checkpoint) -> dict[str, str]:
    paths = {file.path for file in checkpoint.files.values()}
    if checkpoint.folder is not None:
        beside = [*checkpoint.folder.iterdir(), *checkpoint.folder.glob("*_Pooling/*")]
        paths |= {path for path in beside if path.suffix in BESIDE_WEIGHTS and path.is_file()}
    return {_name(path, checkpoint.folder): _digest(path) for path in sorted(paths)}


def _name(path: Path, folder: Path | None) -> str:
    return path.relative_to(folder).as_posix() if folder is not None and path.is_relative_to(folder) else path.name


def _digest(path: Path) -> str:
    digest = xxh3_128()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror or error}.") from None
    return digest.hexdigest()
