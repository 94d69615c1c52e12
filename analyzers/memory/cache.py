"""Estimates kept on disk, so that the same question is answered at once the second time.

The key holds everything an estimate depends on: the config, the settings, the versions of PyTorch, transformers and PEFT, this
package's own source, and the code in the model's folder where that is allowed to run. A file that cannot be read is no answer; a disk that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from analyzers.memory.answer import MemoryEstimate
from loraxs_core.errors import WorkbenchError
from loraxs_core.paths import atomic_file, cache_dir
from loraxs_core.remote_code import code_digest

if TYPE_CHECKING:
    from analyzers.memory.settings import MemorySettings
    from loraxs_core.checkpoint import Checkpoint


def path_of(checkpoint: Checkpoint, settings: MemorySettings) -> Path:
    """Where the estimate of `settings` is kept."""
    return cache_dir("memory") / f"{digest(checkpoint, settings)}.json"


def digest(checkpoint: Checkpoint, settings: MemorySettings) -> str:
    """Of everything that an estimate depends on."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    plan = settings.plan
    values["plan"] = plan and {"ranks": dict(plan.ranks), "targets": list(plan.targets), "alpha": plan.alpha_over_r}
    names = [(weight.name, weight.shape) for weight in checkpoint.weights]
    code = code_digest(checkpoint.folder) if settings.trust_remote_code else ""
    key = json.dumps([checkpoint.name, checkpoint.config, names, values, code, _software()], sort_keys=True, default=str)
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def load(path: Path) -> MemoryEstimate | None:
    """The estimate kept at `path`; None when there is none that can be read."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        details = {(part, what): size for part, what, size in kept.pop("details")}
        for name in ("interval", "context", "reasons"):
            kept[name] = tuple(kept[name])
        return MemoryEstimate(**kept, details=details)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def save(path: Path, estimate: MemoryEstimate) -> None:
    """Keeps `estimate` at `path`."""
    kept = asdict(estimate)
    kept["details"] = [[*label, size] for label, size in estimate.details.items()]
    with contextlib.suppress(WorkbenchError), atomic_file(path) as temporary:
        temporary.write_text(json.dumps(kept), encoding="utf-8")


@cache
def _software() -> list[str]:
    """Versions of what is traced, and a digest of the sources that trace."""
    sources = hashlib.sha256()
    package = Path(__file__).resolve().parent
    tuner = package.parent.parent / "loraxs_core" / "tuner"
    for source in sorted(
        [
            *package.glob("*.py"),
            *package.glob("*.json"),
            *package.parent.glob("methods/*.py"),
            package.parent / "precision.py",
            *tuner.glob("*.py"),
        ]
    ):
        sources.update(source.read_bytes())
    return [*(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")), sources.hexdigest()]
