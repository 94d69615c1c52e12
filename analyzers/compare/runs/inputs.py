"""What the numbers of a run rest on: the content of its data and model files, and the software. A table must not mix two of any.

Recorded in inputs.json when work on a run first begins, compared whenever it goes on. Of the software, what may change a score counts;
the person may let it pass (`accept_software`), and the run says so from then on.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from xxhash import xxh3_128

from analyzers.compare.tasks import Splits, Task
from loraxs_core.cache import software as code
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.documents import read_object
from loraxs_core.errors import RunError
from loraxs_core.file_sums import file_sum
from loraxs_core.paths import atomic_file, data_dir

FILE = "inputs.json"
CODE = "code"
OWN_PACKAGES = ("analyzers", "loraxs_core")  # whose code decides a score
RELEASES = ("torch", "transformers", "peft")
PACKAGES = ("loraxs-workbench", "torch", "transformers", "peft", "numpy")
BESIDE_WEIGHTS = (".json", ".txt", ".model")  # configuration and tokenizer


def software() -> dict[str, str]:
    """Versions that a result depends on, and a digest of this program's code."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {CODE: code(*OWN_PACKAGES).rpartition(" ")[2][:12]}


def inputs(checkpoint: Checkpoint, task: Task, splits: Splits) -> dict:
    """The document of inputs.json: digests of every example and of every file that the model is loaded from, and `software`."""
    return {"data": _examples(task, splits), "model": _files(checkpoint), "software": software()}


def settle_inputs(folder: Path, found: dict) -> list[str]:
    """Records `found` for a run that begins, compares it for one that goes on; returns what is not the same and does not matter.

    Raises RunError for data or a model that are not what the run began with, and for software whose scores may differ: another
    release of torch, transformers or PEFT, or other code of this program. `accept_software` lets the run go on with the latter.
    """
    path = folder / FILE
    try:
        known = _known(folder)
    except FileNotFoundError:
        _write(path, found)
        return []
    if change := _change(known, found):
        raise RunError(f"The run {folder.name} cannot go on: {change}. Start a new run, or bring back what it began with.")
    before, now = known["software"], found["software"]
    where = folder.name if folder.parent == data_dir("runs") else str(folder)
    if mixed := [sentence for name, sentence in _differences(before, now).items() if _matters(name, before, now)]:
        raise RunError(
            f"The run {folder.name} cannot go on: it {mixed[0]}, which may score differently. Start a new run, bring back what it "
            f"began with, or let one table hold both with `loraxs runs {shlex.quote(where)} --resume --force`."
        )
    return _taken_over(folder, known, now)


def accept_software(folder: Path) -> None:
    """Lets a run that began with other software go on with this one, and notes it for its remarks. Raises RunError for a run that
    does not say what it began with; one that has not begun needs nothing."""
    with contextlib.suppress(FileNotFoundError):
        _taken_over(folder, _known(folder), software())


def software_changes(folder: Path) -> list[str]:
    """What was exchanged under a run while it was not working, one sentence each."""
    with contextlib.suppress(FileNotFoundError, RunError):
        found = read_object(folder / FILE).get("changes", [])
        return [change for change in found if isinstance(change, str)] if isinstance(found, list) else []
    return []


def _known(folder: Path) -> dict:
    """What the run began with. Raises FileNotFoundError before it has begun, RunError where that cannot be read."""
    try:
        known = read_object(folder / FILE)
        for what in ("model", "software"):
            if not isinstance(known.get(what), dict) or not all(isinstance(value, str) for value in known[what].values()):
                raise RunError(f"{folder / FILE} does not tell its {what}.")
    except RunError as error:
        raise RunError(
            f"{error} Whether data and model are those that the run began with cannot be told; start a new one."
        ) from None
    return known


def _taken_over(folder: Path, known: dict, now: dict[str, str]) -> list[str]:
    """Notes that the run goes on with this software; the sentences that say so."""
    changes = list(_differences(known["software"], now).values())
    if changes:
        said = [f"The run {change}." for change in changes]
        _write(folder / FILE, {**known, "software": now, "changes": [*software_changes(folder), *said]})
    return changes


def _write(path: Path, document: dict) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _change(known: dict, found: dict) -> str | None:
    """What of data and model is not the same."""
    if known.get("data") != found["data"]:
        return "its data has changed since it began, and one table must not mix scores on two"
    before, now = known["model"], found["model"]
    if before != now:
        name = min(name for name in {*before, *now} if before.get(name) != now.get(name))
        return f"{name} of its model has changed since it began"
    return None


def _differences(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Package -> how its version differs, in words. What a run does not tell, as those of earlier versions, is no difference."""
    return {
        name: f"began with {_called(name)} {before[name]}, and this is {now.get(name, 'gone')}"
        for name in sorted(before)
        if before[name] != now.get(name)
    }


def _matters(name: str, before: dict[str, str], now: dict[str, str]) -> bool:
    """Whether scores may differ with it: of libraries the release (2.9 of 2.9.1) counts, of this program everything."""
    if name in RELEASES:
        return before[name].split(".")[:2] != now.get(name, "").split(".")[:2]
    return name in (CODE, PACKAGES[0])


def _called(name: str) -> str:
    return "code of this program" if name == CODE else name


def _examples(task: Task, splits: Splits) -> str:
    digest = xxh3_128(json.dumps([task.kind, task.metric, task.classes]).encode())
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test, **splits.more}
    for name, part in parts.items():
        digest.update(name.encode())
        for example in part:
            written = [example.answer, *example.messages, *example.tools] if example.answer is not None else []
            digest.update(json.dumps([example.text, example.label, example.pair, *written]).encode())
    return digest.hexdigest()


def _files(checkpoint: Checkpoint) -> dict[str, str]:
    paths = {file.path for file in checkpoint.files.values()}
    if checkpoint.folder is not None:
        beside = [*checkpoint.folder.iterdir(), *checkpoint.folder.glob("*_Pooling/*")]
        paths |= {path for path in beside if path.suffix in BESIDE_WEIGHTS and path.is_file()}
    sums = {}
    for path in sorted(paths):
        try:
            sums[_name(path, checkpoint.folder)] = file_sum(path)
        except OSError as error:
            raise RunError(f"Cannot read {path}: {error.strerror or error}.") from None
    return sums


def _name(path: Path, folder: Path | None) -> str:
    return path.relative_to(folder).as_posix() if folder is not None and path.is_relative_to(folder) else path.name
